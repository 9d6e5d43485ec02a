"""The engine on a fake model: whatever is mixed, shared, preempted or aborted, each sequence says what it would say alone."""

import random
from array import array
from typing import Any

import pytest

from backends.engine.engine import MAX_HELD_LOGPROBS, Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.scheduler import MAX_STILL
from backends.engine.sequence import Matcher
from backends.engine.work import Reload, Work
from backends.kv_cache.host_cache import HostCache
from backends.spec_decode.draft_model import DraftModel
from backends.spec_decode.speculator import Speculator
from backends.spec_decode.state import DraftCost
from backends.wire import (
    Cache,
    Finished,
    FinishReason,
    Grammar,
    Load,
    Sampling,
    Submit,
    TokenLogprob,
    decode_up,
    page_hashes,
    split_hashes,
)
from backends.worker.link_handler import Attach, LinkHandler, Outgoing
from tests.backends.fakes import EOS, FakeRunner, LateCopier, LetterDecoder, Ticks, letter, limits, reference, tokens_of


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


@pytest.mark.parametrize("seed", range(40))
def test_random_mixes_say_what_each_would_say_alone(seed: int) -> None:
    rng = random.Random(seed)
    of = limits(
        num_pages=rng.choice((14, 24, 60)),
        page_size=rng.choice((1, 3, 4)),
        max_sequences=rng.choice((1, 3, 5)),
        prefill_tokens=rng.choice((1, 7, 64)),
        max_context=40,
    )
    rig = Rig(of, seed, host_pages=rng.choice((0, 5, 60)), guesses=rng.choice(("", "oracle", "draft")))
    if rng.random() < 0.5:
        rig.runner.during = lambda: rig.engine.record_arrival(rng.randrange(-1, 3))
    stems = [[rng.randrange(1, 97) for _ in range(12)] for _ in range(3)]
    asked: dict[int, tuple[list[int], int]] = {}
    aborted: set[int] = set()
    for request in range(40):
        prompt = (rng.choice(stems)[: rng.randrange(1, 12)] + [rng.randrange(1, 97) for _ in range(rng.randrange(4))])[
            : of.longest - 1
        ]
        asked[request] = prompt, rng.randrange(1, 12)
        rig.submit(
            request,
            prompt,
            priority=rng.randrange(3),
            salt=rng.choice("ab"),
            chain=rng.choice("xyz"),
            max_tokens=asked[request][1],
        )
        for _ in range(rng.randrange(4)):
            if rig.engine.has_work:
                rig.step()
        if rng.random() < 0.15:
            victim = rng.randrange(request + 1)
            rig.engine.abort("me", victim)
            aborted.add(victim)
        if rng.random() < 0.1:
            rig.engine.set_retention(rng.choice("xyz"), rng.choice((0.0, 0.5, 2.0)))
        rig.engine.check()
    rig.run()
    assert set(rig.finished) == set(asked)
    for request, (prompt, count) in asked.items():
        expected = said(prompt, min(count, of.longest - len(prompt)))
        finished = rig.finished[request]
        if finished.reason == "refused":
            assert finished.error_code == "too_many"
        elif finished.reason == "abort":
            assert request in aborted and expected.startswith(rig.text.get(request, ""))
        else:
            assert rig.text.get(request, "") == expected
            assert rig.counted[request] == finished.num_output_tokens


def test_right_guesses_save_steps_and_are_charged_for() -> None:
    rig, plain = Rig(limits(), guesses="oracle"), Rig(limits())
    for one in (rig, plain):
        one.submit(1, [5] * 9, max_tokens=40, ignore_eos=True)
        one.run()
    assert rig.engine.speculator is not None
    tally = rig.engine.speculator.tallies["lookup"]
    assert rig.text == plain.text and tally.drafted > tally.accepted > 10
    assert rig.finished[1].num_steps < plain.finished[1].num_steps - 10
    assert rig.engine.busy_meter.attributed_ns == rig.engine.busy_meter.busy_ns


def test_a_draft_catches_up_on_what_others_computed_and_is_then_always_right() -> None:
    rig, plain = Rig(limits(prefill_tokens=8), guesses="draft"), Rig(limits(prefill_tokens=8))
    for one in (rig, plain):
        one.submit(1, [5] * 30, max_tokens=40, ignore_eos=True)
        one.run()
        one.submit(2, [*[5] * 30, *reference([5] * 30, 20), 7], max_tokens=40, ignore_eos=True)
        one.submit(3, [6] * 20, max_tokens=40, ignore_eos=True)
        one.run()
    assert rig.engine.speculator is not None
    tally = rig.engine.speculator.tallies["draft"]
    assert rig.text == plain.text and tally.drafted == tally.accepted > 60
    assert rig.finished[2].num_cached_tokens > 40 and rig.finished[2].num_steps < plain.finished[2].num_steps - 20
    assert rig.engine.busy_meter.attributed_ns == rig.engine.busy_meter.busy_ns


def test_a_second_turn_reuses_the_pages_of_the_first() -> None:
    rig = Rig(limits(page_size=4))
    first = [5] * 10
    rig.submit(1, first, max_tokens=7, ignore_eos=True)
    rig.run()
    history = first + reference(first, 7)
    rig.submit(2, [*history, 9])
    rig.run()
    assert rig.finished[2].num_cached_tokens == 16 == len(history) - 1
    assert rig.text[2] == said([*history, 9], 8)


def test_what_the_pool_had_to_give_up_comes_back_from_the_host() -> None:
    rig = Rig(limits(num_pages=10, page_size=4), host_pages=40)
    prompts = [[number + 1] * 30 for number in range(3)]
    for turn in range(2):
        for number, prompt in enumerate(prompts):
            rig.submit(10 * turn + number, prompt, max_tokens=3, ignore_eos=True)
            rig.run()
            assert rig.finished[10 * turn + number].num_cached_tokens == (28 if turn else 0)
    assert all(rig.text[10 + number] == rig.text[number] for number in range(3))
    assert rig.engine.tier is not None and rig.engine.tier.num_loaded >= 14


def test_links_are_told_what_the_host_tier_holds_and_what_a_reload_takes() -> None:
    rig = Rig(limits(num_pages=10, page_size=4), host_pages=12)
    link_handler, told = LinkHandler(rig.engine), set[bytes]()
    assert rig.engine.tier is not None

    def take(outgoing: list[Outgoing]) -> list[Load]:
        loads = []
        for message in (message for out in outgoing for frame in out.frames for message in decode_up(frame)):
            if isinstance(message, Load):
                loads.append(message)
            elif isinstance(message, Cache):
                told.difference_update(split_hashes(message.host_removed))
                told.update(split_hashes(message.host_stored))
        return loads

    take(link_handler.take(Attach(1), 0))
    for number in range(5):
        rig.submit(number, [number + 1] * 30, max_tokens=3, ignore_eos=True)
        rig.run()
        loads = take(link_handler.report(number * 10**9))
        assert told == set(rig.engine.tier.page_hashes()) and len(told) == min(12, 8 * (number + 1))
    assert loads[-1].reload_s_per_token == pytest.approx(0.001)
    told.clear()
    take(link_handler.take(Attach(2), 0))
    assert told == set(rig.engine.tier.page_hashes())


def test_a_tier_keeps_the_pages_that_others_hang_on_longest() -> None:
    rig = Rig(limits(num_pages=20, page_size=4), host_pages=4)
    rig.submit(1, [5] * 17, max_tokens=1)
    rig.run()
    rig.submit(2, [6] * 9, max_tokens=1)
    rig.run()
    tier, names = rig.engine.tier, page_hashes(array("I", [5] * 17).tobytes(), page_size=4, fingerprint="fake", cache_salt="")
    assert tier is not None and tier.match(names) == 2


def host_rig(*chains: str, host_pages: int) -> tuple[Rig, dict[str, list[bytes]]]:
    """After one prompt of five pages for each chain, of tokens of its own; the device forgets all but the last ones."""
    rig, names = Rig(limits(num_pages=8, page_size=4), host_pages=host_pages), {}
    for number, chain in enumerate(chains):
        prompt = [number + 1] * 21
        rig.submit(number, prompt, max_tokens=1, chain=chain)
        rig.run()
        names[chain] = page_hashes(array("I", prompt).tobytes(), page_size=4, fingerprint="fake", cache_salt="")
    return rig, names


def test_the_host_tier_gives_up_what_is_worth_least_and_of_equals_what_was_used_first() -> None:
    rig, names = host_rig("a", "b", "c", host_pages=15)
    tier = rig.engine.tier
    assert tier is not None
    rig.engine.set_retention("a", 0.6)
    rig.engine.set_retention("b", 0.1)
    rig.engine.set_retention("c", 0.6)
    for request, (chain, left) in enumerate({"d": (5, 0, 5), "e": (0, 0, 5), "f": (0, 0, 0)}.items()):
        rig.submit(100 + request, [50 + request] * 21, max_tokens=1, chain=chain)
        rig.run()
        assert tuple(tier.match(names[name]) for name in "abc") == left
        tier.check()


def test_pages_that_another_chain_has_as_well_stay_with_it() -> None:
    rig = Rig(limits(num_pages=8, page_size=4), host_pages=15)
    shared = [7] * 12
    for request, chain in enumerate("ab"):
        rig.submit(request, [*shared, *[20 + request] * 9], max_tokens=1, chain=chain)
        rig.run()
    tier = rig.engine.tier
    assert tier is not None and len(tier.page_hashes()) == 3 + 2 * 2
    rig.engine.set_retention("a", 0.0)
    assert len(tier.page_hashes()) == 3 + 2
    rig.engine.set_retention("b", 0.0)
    assert tier.page_hashes() == []
    tier.check()


def test_of_a_chain_that_was_cut_short_the_host_gives_up_first_what_its_last_turn_did_not_have() -> None:
    rig, names = host_rig("a", host_pages=8)
    tier = rig.engine.tier
    assert tier is not None
    rig.submit(50, [*[1] * 8, *[9] * 13], max_tokens=1, chain="a")
    rig.run()
    rig.engine.set_retention("a", 0.5)
    rig.submit(51, [30] * 13, max_tokens=1, chain="b")
    rig.run()
    assert tier.match(names["a"]) == 2
    now = page_hashes(array("I", [*[1] * 8, *[9] * 13]).tobytes(), page_size=4, fingerprint="fake", cache_salt="")
    assert tier.match(now) == 5


def test_prompts_with_different_salts_never_share_pages() -> None:
    rig = Rig(limits())
    for request, salt in enumerate(("a", "b", "a")):
        rig.submit(request, [7] * 20, salt=salt)
        rig.run()
    assert [rig.finished[request].num_cached_tokens for request in range(3)] == [0, 0, 16]


def test_resident_pages_have_the_names_that_a_gateway_computes() -> None:
    rig = Rig(limits(page_size=4))
    prompt = list(range(1, 18))
    rig.submit(1, prompt, max_tokens=1, salt="s")
    rig.run()
    stored, removed = rig.engine.index.take_changes()
    assert stored == page_hashes(array("I", prompt).tobytes(), page_size=4, fingerprint="fake", cache_salt="s")
    assert removed == []


def test_an_abort_frees_pages_at_once() -> None:
    rig = Rig(limits())
    rig.submit(1, [3] * 30, max_tokens=50, ignore_eos=True)
    rig.step()
    rig.step()
    assert rig.engine.pool.num_used
    rig.engine.abort("me", 1)
    rig.engine.check()
    assert rig.engine.pool.num_used == 0 and not rig.engine.has_work
    rig.collect()
    assert rig.finished[1].reason == "abort" and rig.finished[1].device_s > 0


def test_aborting_what_is_unknown_does_nothing() -> None:
    rig = Rig(limits())
    rig.engine.abort("me", 99)
    rig.collect()
    assert not rig.finished


@pytest.mark.parametrize(
    ("prompt", "sampling", "code"),
    [
        ([1] * 200, {}, "too_long"),
        ([], {}, "bad_prompt"),
        ([1, 97], {}, "bad_prompt"),
        ([1], {"max_tokens": 0}, "bad_sampling"),
        ([1], {"temperature": -1.0}, "bad_sampling"),
        ([1], {"top_p": 0.0}, "bad_sampling"),
        ([1], {"top_k": -1}, "bad_sampling"),
    ],
)
def test_what_cannot_run_is_refused_with_one_finished(prompt: list[int], sampling: dict[str, Any], code: str) -> None:
    rig = Rig(limits())
    rig.submit(1, prompt, **sampling)
    assert (rig.finished[1].reason, rig.finished[1].error_code) == ("refused", code)
    assert not rig.engine.has_work


def test_what_never_fits_the_pool_is_refused_and_what_just_fits_is_not() -> None:
    rig = Rig(limits(num_pages=5, page_size=4))
    rig.submit(1, [2] * 20)
    assert rig.finished[1].error_code == "too_long"
    rig.submit(2, [2] * 19, max_tokens=50)
    rig.run()
    assert rig.finished[2].reason == "length" and rig.finished[2].num_output_tokens == 1


def test_too_many_waiting_are_refused() -> None:
    rig = Rig(limits(max_sequences=2))
    for request in range(5):
        rig.submit(request, [1, 2, 3])
    assert [rig.finished[request].error_code for request in rig.finished] == ["too_many"] * 3


def test_a_stop_string_ends_the_text_before_it() -> None:
    rig = Rig(limits())
    whole = said([6, 6], 8)
    rig.submit(1, [6, 6], stop=("never", whole[3:5]), ignore_eos=True)
    rig.run()
    assert rig.text[1] == whole[:3]
    assert (rig.finished[1].reason, rig.finished[1].stop_text, rig.finished[1].num_output_tokens) == ("stop", whole[3:5], 5)
    assert rig.counted[1] == 5


def test_text_held_for_a_stop_string_comes_at_the_end() -> None:
    rig = Rig(limits())
    whole = said([6, 6], 8)
    rig.submit(1, [6, 6], stop=(whole[-2:] + "x",), ignore_eos=True)
    rig.run()
    assert rig.text[1] == whole and rig.finished[1].reason == "length"


def test_decoding_goes_on_while_a_long_prompt_is_read_in_chunks() -> None:
    rig = Rig(limits(prefill_tokens=8, num_pages=100))
    rig.submit(1, [1, 2], max_tokens=30, ignore_eos=True)
    rig.step()
    rig.submit(2, [3] * 80, max_tokens=2)
    for expected in range(2, 10):
        rig.step()
        assert rig.counted[1] == expected
    assert max(rig.runner.computed) <= 8 + 1


def test_a_higher_priority_displaces_a_lower_one_that_later_goes_on() -> None:
    rig = Rig(limits(max_sequences=1))
    rig.submit(1, [1] * 9, priority=5, max_tokens=20, ignore_eos=True)
    rig.step()
    rig.step()
    rig.submit(2, [2] * 9, priority=0, max_tokens=3, ignore_eos=True)
    rig.step()
    assert 2 in rig.counted and rig.engine.scheduler.num_preemptions == 1
    rig.run()
    assert list(rig.finished) == [2, 1]
    assert rig.text[1] == "".join(letter(t) for t in reference_without_end([1] * 9, 20))


def test_a_long_prompt_that_was_begun_does_not_hold_up_what_goes_before_it() -> None:
    rig = Rig(limits(prefill_tokens=8, num_pages=100))
    rig.submit(1, [1] * 60, priority=1, max_tokens=2, ignore_eos=True)
    rig.step()
    rig.submit(2, [2] * 7, priority=0, max_tokens=3, ignore_eos=True)
    rig.submit(3, [3] * 7, priority=1, max_tokens=3, ignore_eos=True)
    rig.step()
    assert rig.counted == {2: 1}
    rig.run()
    assert rig.counted == {1: 2, 2: 3, 3: 3}


def test_rows_stand_still_while_a_prompt_of_better_priority_is_read_but_never_for_long() -> None:
    rig = Rig(limits(prefill_tokens=8, num_pages=100))
    rig.submit(1, [1, 2], priority=1, max_tokens=30, ignore_eos=True)
    rig.submit(2, [1, 3], priority=0, max_tokens=30, ignore_eos=True)
    rig.step()
    rig.submit(3, [3] * 80, priority=0, max_tokens=2)
    counts = []
    for _ in range(10):
        rig.step()
        counts.append(rig.counted[1])
    assert counts == [1] * MAX_STILL + [2] * (MAX_STILL + 1) + [3]
    assert rig.counted[2] == 11, "of the same priority nobody stands still"
    rig.run()
    assert rig.text[1] == "".join(letter(t) for t in reference_without_end([1, 2], 30))


def test_rows_go_on_while_a_prompt_of_better_priority_finds_no_room() -> None:
    rig = Rig(limits(num_pages=6, page_size=4, max_sequences=4))
    rig.submit(1, [1] * 4, priority=0, max_tokens=14, ignore_eos=True)
    rig.submit(2, [2] * 4, priority=1, max_tokens=4, ignore_eos=True)
    rig.step()
    rig.submit(3, [3] * 20, priority=0, max_tokens=1)
    rig.run()
    assert rig.counted == {1: 14, 2: 4, 3: 1}


def reference_without_end(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens += reference(tokens, 1)
    return [token for token in tokens[len(prompt) :] if token != EOS]


def broken_off(priority: int) -> Rig:
    """Five rows of priority 1 run; one of `priority` comes while a step of theirs is under way."""
    rig = Rig(limits(num_pages=200, max_sequences=6, prefill_tokens=50))
    for request in range(5):
        rig.submit(request, [5 + request] * 9, priority=1, max_tokens=60, ignore_eos=True)
    for _ in range(40):  # which is how much may be lost
        rig.step()
    rig.runner.during = lambda: rig.engine.record_arrival(priority)
    rig.step()
    rig.runner.during = lambda: None
    rig.submit(9, [9] * 30, priority=priority, max_tokens=1, ignore_eos=True)
    return rig


def test_a_step_is_broken_off_for_a_prompt_that_goes_before_what_is_in_it_and_that_prompt_pays() -> None:
    rig, other = broken_off(0), broken_off(1)
    assert (rig.runner.num_broken_off, other.runner.num_broken_off) == (1, 0)
    lost_ns = rig.engine.step_interrupt.lost_ns
    assert lost_ns > 0 == other.engine.step_interrupt.lost_ns
    rig.step()
    assert rig.finished[9].device_s >= lost_ns / 1e9 and rig.engine.step_interrupt.lost_ns == 0
    rig.run()
    other.run()
    assert rig.text == other.text
    assert rig.engine.busy_meter.attributed_ns == rig.engine.busy_meter.busy_ns


def test_who_breaks_off_every_step_takes_a_bounded_share_of_the_time() -> None:
    rig, plain = Rig(limits(num_pages=200)), Rig(limits(num_pages=200))
    rig.runner.during = lambda: rig.engine.record_arrival(0)
    for one in (rig, plain):
        one.submit(1, [5] * 9, priority=1, max_tokens=150, ignore_eos=True)
        one.run()
    assert 0 < rig.runner.num_broken_off < 0.1 * len(rig.runner.computed)
    assert rig.text == plain.text


def test_every_nanosecond_of_a_step_is_charged_to_somebody() -> None:
    rig = Rig(limits())
    start_ns = rig.clock.now_ns
    for request in range(4):
        rig.submit(request, [request + 1] * (5 * request + 1), max_tokens=3 + request)
        rig.step()
    rig.run()
    busy_meter = rig.engine.busy_meter
    assert busy_meter.attributed_ns == busy_meter.busy_ns
    assert sum(round(f.device_s * 1e9) for f in rig.finished.values()) == busy_meter.busy_ns
    assert all(f.num_steps and 1 <= f.mean_batch <= 4 and f.device_s >= f.prefill_device_s > 0 for f in rig.finished.values())
    assert busy_meter.busy_ns + busy_meter.idle_ns <= rig.clock.now_ns - start_ns + 1_237


def test_logprobs_come_with_their_text() -> None:
    rig = Rig(limits())
    message = Submit(
        request=1, prompt=array("I", [5, 5]).tobytes(), sampling=Sampling(max_tokens=3, top_logprobs=1, ignore_eos=True)
    )
    rig.engine.submit("me", message)
    logprobs: list[TokenLogprob] = []
    while rig.engine.has_work:
        rig.engine.step()
        for piece in rig.engine.take_output().pieces.get("me", []):
            assert len(piece.logprobs) == piece.num_tokens
            logprobs += piece.logprobs
    assert [tokens_of(one.text)[0] for one in logprobs] == reference_without_end([5, 5], 3)
    assert logprobs[0].top == ((letter(1), -0.5),)


class Silent(LetterDecoder):
    """Every token is a special one."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "" if skip_special_tokens else super().decode(ids)


def test_logprobs_of_silent_tokens_leave_in_many_frames() -> None:
    rig = Rig(limits())
    rig.engine._decoder = Silent()
    count = MAX_HELD_LOGPROBS * 3 // 2
    rig.submit(1, [5, 5], max_tokens=count, top_logprobs=1, ignore_eos=True)
    frames: list[int] = []
    while rig.engine.has_work:
        rig.engine.step()
        frames += [len(piece.logprobs) for piece in rig.engine.take_output().pieces.get("me", [])]
    assert frames == [MAX_HELD_LOGPROBS, count - MAX_HELD_LOGPROBS]


def test_what_is_shared_is_cached_across_salts_and_nothing_behind_it() -> None:
    rig = Rig(limits())
    prompt = array("I", range(3, 43)).tobytes()
    for number, (salt, shared) in enumerate([("one", 18), ("two", 18), ("three", 0), ("two", 18)]):
        sampling = Sampling(max_tokens=2)
        rig.engine.submit("me", Submit(request=number, prompt=prompt, sampling=sampling, cache_salt=salt, shared_tokens=shared))
        rig.collect()
        rig.run()
    cached = [rig.finished[number].num_cached_tokens for number in range(4)]
    assert cached == [0, 16, 0, 36]


class DeadEnd:
    """A grammar that refuses the token after `count`."""

    vocab_size = 97

    def __init__(self, count: int) -> None:
        self._left = count

    def limit(self, room: int) -> None: ...

    def settle(self, token: int) -> int:
        return token

    def accept(self, token: int) -> FinishReason | None:
        self._left -= 1
        return "error" if self._left < 0 else None

    def fill(self, masks: Any, row: int) -> None: ...


@pytest.mark.parametrize("count", [0, 3])
def test_a_token_that_a_grammar_refuses_ends_its_sequence_alone(count: int) -> None:
    rig = Rig(limits())
    rig.submit(1, [5, 6, 7])
    rig.submit_held(2, [5, 6, 8], DeadEnd(count))
    rig.run()
    assert rig.text[1] == said([5, 6, 7], 8) and rig.finished[1].reason in ("stop", "length")
    ended = rig.finished[2]
    assert (ended.reason, ended.error_code, ended.error_param) == ("error", "bad_grammar", "response_format")
    assert ended.num_output_tokens == count + 1 and rig.text.get(2, "") == said([5, 6, 8], count)
