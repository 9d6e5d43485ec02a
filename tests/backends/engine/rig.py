"""An engine on a fake model for tests: submit, step, collect."""

import random
from array import array

from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.sequence import Matcher
from backends.engine.work import Reload, Work
from backends.kv_cache.host_cache import HostCache
from backends.spec_decode.draft_model import DraftModel
from backends.spec_decode.speculator import Speculator
from backends.spec_decode.state import DraftCost
from backends.wire import Finished, Grammar, Sampling, Submit
from tests.backends.fakes import EOS, FakeRunner, LateCopier, LetterDecoder, Ticks, letter, reference


class Oracle(Speculator):
    """Guesses what will be said, with one token in five wrong."""

    rng = random.Random(0)

    def with_drafts(self, work: tuple[Work, ...]) -> tuple[Work, ...]:
        decodes = all(one.samples and one.length == 1 for one in work)
        return tuple(self._drafted(one) for one in work) if decodes else work

    def _drafted(self, work: Work) -> Work:
        self._guesses(work.sequence).evidence = ("own", 1)
        right = reference(list(work.sequence.tokens), self.rng.randrange(4))
        guessed = tuple(token if self.rng.random() < 0.8 else (token + 1) % 97 for token in right)
        return work._replace(drafts=guessed[: self._scheduler.can_allocate_drafts(work, len(guessed))])


class Twin(Speculator):
    """Drafts with a model that says the same, over KV of its own: a guess is only wrong where that KV is."""

    def __init__(self, engine: Engine, of: RequestLimits, clock: Ticks) -> None:
        runner = FakeRunner(of)
        shape = {"num_pages": of.num_pages, "page_size": of.page_size, "longest": of.longest, "kv_bytes": 1}
        drafter = DraftModel(runner, most_tokens=of.prefill_tokens, clock_ns=clock, **shape)
        drafter.priced = lambda of, sequence, num_sequences, context: DraftCost(1.0, 0.0, 0.0)  # type: ignore[method-assign]
        super().__init__(engine.scheduler, engine.step_cost, kv_bytes=1, clock_ns=clock, lookup=False, drafter=drafter)

    def learn(self, work: Work, accepted: int) -> None:
        tokens = list(work.sequence.tokens)
        assert work.drafts == tuple(reference(tokens[: work.start + 1], 99)[: len(work.drafts)]) or EOS in work.drafts
        super().learn(work, accepted)


class Rig:
    """An engine, and what it said to whom."""

    def __init__(self, of: RequestLimits, seed: int = 0, host_pages: int = 0, guesses: str = "") -> None:
        self.runner = FakeRunner(of)
        self.clock = Ticks()
        tier: HostCache[Reload] | None = None
        if host_pages:
            tier = HostCache(host_pages, LateCopier(self.runner, host_pages, of.page_size, seed))
        self.engine = Engine(self.runner, LetterDecoder(), of, clock_ns=self.clock, rng=random.Random(seed), tier=tier)
        if guesses == "oracle":
            costs, clock = self.engine.step_cost, self.clock
            self.engine.speculator = Oracle(self.engine.scheduler, costs, kv_bytes=of.kv_bytes, clock_ns=clock, lookup=True)
        elif guesses == "draft":
            self.engine.speculator = Twin(self.engine, of, self.clock)
        self.text: dict[int, str] = {}
        self.counted: dict[int, int] = {}
        self.finished: dict[int, Finished] = {}

    def submit(
        self, request: int, prompt: list[int], *, priority: int = 0, salt: str = "", chain: str = "", **sampling: object
    ) -> None:
        options = Sampling(**{"max_tokens": 8, **sampling})  # type: ignore[arg-type]
        message = Submit(
            request=request,
            prompt=array("I", prompt).tobytes(),
            sampling=options,
            priority=priority,
            cache_salt=salt,
            chain=chain,
        )
        self.engine.submit("me", message)
        self.collect()

    def submit_held(self, request: int, prompt: list[int], matcher: Matcher) -> None:
        """Submit a request that a grammar constrains."""
        sampling = Sampling(max_tokens=8, grammar=Grammar(kind="json", param="response_format"))
        self.engine.submit("me", Submit(request=request, prompt=array("I", prompt).tobytes(), sampling=sampling), matcher)

    def step(self) -> None:
        self.engine.step()
        self.engine.check()
        self.collect()

    def run(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def collect(self) -> None:
        output = self.engine.take_output()
        for pieces in output.pieces.values():
            for piece in pieces:
                self.text[piece.request] = self.text.get(piece.request, "") + piece.text
                self.counted[piece.request] = self.counted.get(piece.request, 0) + piece.num_tokens
        for _, finished in output.finished:
            assert finished.request not in self.finished, "finished twice"
            self.finished[finished.request] = finished


def said(prompt: list[int], count: int) -> str:
    return "".join(letter(token) for token in reference(prompt, count) if token != EOS)


def reference_without_end(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens += reference(tokens, 1)
    return [token for token in tokens[len(prompt) :] if token != EOS]
