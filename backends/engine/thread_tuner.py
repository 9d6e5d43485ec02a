"""Chooses the number of threads of a step: one or all. Pure.

Threads synchronize after each matrix. Short steps finish sooner on one thread. If other programs use the processors, all
threads wait for the one that lost its own. So both are tried on steps of each size, and the recently faster one is kept.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

REMEMBERED = 7
FIRST_TRIALS = 3
TRY_EVERY, SELDOM = 32, 1024
"""Steps between trials of the slower choice. The interval doubles from TRY_EVERY to SELDOM with each trial that it loses."""


@dataclass(slots=True)
class _Size:
    """Recent times of steps of about one size, for a unit of work, on one thread and on all."""

    one: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    all: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    alone: bool = False
    every: int = TRY_EVERY
    until_trial: int = TRY_EVERY

    def next_alone(self) -> bool:
        if min(len(self.one), len(self.all)) < FIRST_TRIALS:
            return len(self.one) < len(self.all)
        self.until_trial -= 1
        return not self.alone if self.until_trial < 0 else self.alone

    def took(self, *, alone: bool, time: float) -> None:
        (self.one if alone else self.all).append(time)
        if min(len(self.one), len(self.all)) < FIRST_TRIALS:
            return
        better = median(self.one) < median(self.all)
        if better is not self.alone:
            self.alone, self.every, self.until_trial = better, TRY_EVERY, TRY_EVERY
        elif self.until_trial < 0:
            self.every = min(2 * self.every, SELDOM)
            self.until_trial = self.every


class ThreadTuner:
    """`most` is the number of threads. Memory is bounded by the number of sizes: powers of two."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._sizes: dict[tuple[bool, int], _Size] = {}

    def choose(self, work: int, *, chunks: bool) -> int:
        """Return the number of threads for a step of `work` units, in any fixed unit. `chunks` is whether it has prefills."""
        return 1 if self.most == 1 or self._size(work, chunks).next_alone() else self.most

    def took(self, work: int, *, chunks: bool, threads: int, time: float) -> None:
        if self.most > 1:
            self._size(work, chunks).took(alone=threads == 1, time=time / max(1, work))

    def _size(self, work: int, chunks: bool) -> _Size:
        return self._sizes.setdefault((chunks, work.bit_length()), _Size())
