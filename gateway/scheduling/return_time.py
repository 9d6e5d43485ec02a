"""When a chain comes back after a pause: P(return within H | idle so far, class), learned from the pauses that were seen.

Pure and bounded. A class is how the turn ended, the tool it called, and the pace of its chain: who paused long pauses long
again. A class that was seen little leans on all classes together, and those on a prior: pauses of coding agents after a tool
call are P50 9 s, P90 71 s, P99 611 s.
"""

from bisect import bisect_right
from typing import NamedTuple

EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0, 91.0, 128.0, 181.0, 256.0, 362.0, 512.0, 900.0)
"""Seconds, a factor of about the square root of two apart; the last one is when a run counts as ended."""
_PACES = (2.2, 9.0, 33.0, 109.0)
_PRIOR = (1, 2, 5, 8, 17, 14, 12, 11, 7, 5, 4, 3, 3, 2, 2, 1, 1, 1, 1)
_PRIOR_NEVER = 3.0
_LEAN = 20.0
"""What the table that a class leans on weighs, in pauses."""
_FORGET = 0.999


class ReturnClass(NamedTuple):
    """How the turn before the pause ended: the finish reason, the tool it called (empty for none or unknown), the pace, and for
    how long the caller asked its prefix to be kept."""

    finish: str
    tool: str = ""
    pace: int = -1
    keep_s: float = 0.0


def pace(last_s: float | None) -> int:
    """The chain's last pause as one of five lengths: up to 2, 9, 33, 109 seconds and more; -1 before the first."""
    if last_s is None:
        return -1
    return bisect_right(_PACES, last_s)


class _Table:
    """How many pauses ended in each bin, and how many never did; old ones count less."""

    __slots__ = ("_from", "counts", "never")

    def __init__(self) -> None:
        self.counts = [0.0] * (len(EDGES) - 1)
        self.never = 0.0
        self._from: list[float] | None = None

    def observe(self, pause_s: float | None) -> None:
        self.counts = [count * _FORGET for count in self.counts]
        self.never *= _FORGET
        self._from = None
        if pause_s is None or pause_s >= EDGES[-1]:
            self.never += 1.0
        else:
            self.counts[bisect_right(EDGES, max(0.0, pause_s)) - 1] += 1.0

    def longer(self) -> list[float]:
        """How many pauses were longer than each edge."""
        if self._from is None:
            rest, found = self.never, [self.never]
            for count in reversed(self.counts):
                rest += count
                found.append(rest)
            self._from = found[::-1]
        return self._from


def _at(longer: list[float], pause_s: float) -> float:
    """Pauses longer than this, straight between edges."""
    if pause_s >= EDGES[-1]:
        return longer[-1]
    i = bisect_right(EDGES, pause_s) - 1
    part = (pause_s - EDGES[i]) / (EDGES[i + 1] - EDGES[i])
    return longer[i] + part * (longer[i + 1] - longer[i])


class ReturnTimeModel:
    """`max_kinds` bounds the tables; a kind that comes after that shares the table of all."""

    def __init__(self, max_kinds: int = 1024) -> None:
        self._max_kinds = max_kinds
        self._prior = _Table()
        self._prior.counts = [float(count) for count in _PRIOR]
        self._prior.never = _PRIOR_NEVER
        self._all = _Table()
        self._by_kind: dict[ReturnClass, _Table] = {}

    def observe(self, return_class: ReturnClass, pause_s: float | None) -> None:
        """A pause ended after so many seconds; None when the chain never came back."""
        self._all.observe(pause_s)
        if return_class not in self._by_kind and len(self._by_kind) < self._max_kinds:
            self._by_kind[return_class] = _Table()
        if (table := self._by_kind.get(return_class)) is not None:
            table.observe(pause_s)

    def chance(self, return_class: ReturnClass, idle_s: float, within_s: float) -> float:
        """That a chain which has been idle for `idle_s` returns within the next `within_s`."""
        if idle_s >= EDGES[-1]:
            return 0.0
        still, later = self._longer(return_class, idle_s), self._longer(return_class, idle_s + within_s)
        return max(0.0, 1.0 - later / still) if still > 0 else 0.0

    def _longer(self, return_class: ReturnClass, pause_s: float) -> float:
        """The share of pauses that are longer."""
        prior = self._prior.longer()
        share = _at(prior, pause_s) / prior[0]
        for table in (self._all, self._by_kind.get(return_class)):
            if table is not None:
                longer = table.longer()
                share = (_at(longer, pause_s) + _LEAN * share) / (longer[0] + _LEAN)
        return share

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert len(self._by_kind) <= self._max_kinds
        for table in (self._all, *self._by_kind.values()):
            assert min(table.counts) >= 0 and table.never >= 0
            assert all(a >= b for a, b in zip(table.longer(), table.longer()[1:], strict=False))
