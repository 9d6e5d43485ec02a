"""Fakes of the engine's neighbours. The fake model reads its context from pages, so that one wrong page shows as wrong text."""

import random
import threading
import time
from collections.abc import Callable, Sequence

from backends.engine.request_limits import RequestLimits
from backends.engine.work import Sampled, StepInterrupted, Work
from backends.wire import Hello

VOCABULARY = 97
EOS = 0


class LetterDecoder:
    """One character a token, so that text is tokens."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(letter(token) for token in ids if token != EOS or not skip_special_tokens)


def letter(token: int) -> str:
    return chr(0x100 + token)


def tokens_of(text: str) -> list[int]:
    return [ord(character) - 0x100 for character in text]


def after(state: int, token: int) -> int:
    return (state * 6_364_136_223_846_793_005 + token * 1_442_695_040_888_963_407 + 1) % 2**64


def next_token(state: int) -> int:
    return (state >> 33) % VOCABULARY


def reference(prompt: Sequence[int], count: int) -> list[int]:
    """What the fake model says, with nothing in between."""
    state = 0
    for token in prompt:
        state = after(state, token)
    said: list[int] = []
    while len(said) < count and (not said or said[-1] != EOS):
        said.append(next_token(state))
        state = after(state, said[-1])
    return said


class FakeRunner:
    """Keeps, in the slot of each token, a state that depends on all tokens so far. `gate` can hold a step back. `during` is
    called in the middle of each step, and may break it off.

    `pause_s` is how long a step leaves the interpreter to others, as a forward pass does: an event loop beside it needs that.
    """

    def __init__(self, limits: RequestLimits, *, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._size = limits.page_size
        self.slots = [-1] * (limits.num_pages * limits.page_size)
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        self.computed: list[int] = []
        self.during: Callable[[], None] = lambda: None
        self.num_broken_off = 0
        self._broken_off = False

    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        self.gate.wait(10)
        if self._pause_s:
            time.sleep(self._pause_s)
        if self.fails:
            raise RuntimeError("the fake model was told to fail")
        half = len(work) // 2
        sampled = [self._run(one) for one in work[:half]]
        self.during()
        if self._broken_off:
            self._broken_off = False
            self.num_broken_off += 1
            raise StepInterrupted
        self.computed.append(sum(one.num_tokens for one in work))
        return sampled + [self._run(one) for one in work[half:]]

    def interrupt(self) -> None:
        self._broken_off = True

    def _run(self, work: Work) -> list[Sampled]:
        sequence, start = work.sequence, work.start
        state = self.slots[self._slot(work, start - 1)] if start else 0
        assert state >= 0, "a slot is read that was never written"
        said: list[Sampled] = []
        known = [*sequence.tokens[start : start + work.length], *work.drafts]
        for ahead, token in enumerate(known, start=1 - work.length):
            state = after(state, token)
            self.slots[self._slot(work, start + work.length - 1 + ahead)] = state
            if work.samples and ahead >= 0:
                said.append(Sampled(next_token(state), -0.5, ((1, -0.5),)))
        return said

    def _slot(self, work: Work, position: int) -> int:
        return work.sequence.pages[position // self._size] * self._size + position % self._size


class Ticks:
    """A clock of nanoseconds that moves when it is looked at."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        self.now_ns += 1_237
        return self.now_ns


def limits(**changed: int) -> RequestLimits:
    return RequestLimits(
        max_context=changed.get("max_context", 200),
        vocab_size=VOCABULARY,
        num_pages=changed.get("num_pages", 64),
        page_size=changed.get("page_size", 4),
        max_sequences=changed.get("max_sequences", 4),
        prefill_tokens=changed.get("prefill_tokens", 32),
        eos_tokens=frozenset({EOS}),
        kv_bytes=16,
        fingerprint="fake",
    )


def hello(of: RequestLimits) -> Hello:
    return Hello(
        protocol=1,
        model="fake",
        fingerprint=of.fingerprint,
        device="cpu",
        max_context=of.longest,
        page_size=of.page_size,
        num_pages=of.num_pages,
        max_sequences=of.max_sequences,
        eos_tokens=(EOS,),
        kernels={},
    )


class LateCopier:
    """Copies when it must, or when a coin says so: until then nobody may see the copy, nor change what it reads."""

    page_s = 0.004

    def __init__(self, runner: FakeRunner, num_slots: int, page_size: int, seed: int) -> None:
        self._states, self._size, self._rng = runner.slots, page_size, random.Random(seed)
        self._host = [[-1] * page_size for _ in range(num_slots)]
        self._waiting: list[Callable[[], None]] = []
        self.num_done = self.num_asked = 0

    def save(self, pages: Sequence[int], slots: Sequence[int]) -> "LateTicket":
        return self._ask(lambda: [self._save(*pair) for pair in zip(pages, slots, strict=True)])

    def load(self, slots: Sequence[int], pages: Sequence[int]) -> "LateTicket":
        return self._ask(lambda: [self._load(*pair) for pair in zip(slots, pages, strict=True)])

    def finish(self, number: int) -> None:
        while self.num_done < number:
            self._waiting.pop(0)()
            self.num_done += 1

    def is_done(self, number: int) -> bool:
        if self._waiting and self._rng.random() < 0.3:
            self.finish(self.num_done + 1)
        return self.num_done >= number

    def _ask(self, copy: Callable[[], object]) -> "LateTicket":
        self._waiting.append(lambda: (copy(), None)[1])
        self.num_asked += 1
        return LateTicket(self, self.num_asked)

    def _save(self, page: int, slot: int) -> None:
        self._host[slot] = self._states[page * self._size : (page + 1) * self._size]

    def _load(self, slot: int, page: int) -> None:
        self._states[page * self._size : (page + 1) * self._size] = self._host[slot]


class LateTicket:
    def __init__(self, copier: LateCopier, number: int) -> None:
        self._copier, self._number = copier, number

    def done(self) -> bool:
        return self._copier.is_done(self._number)

    def wait(self) -> None:
        self._copier.finish(self._number)
