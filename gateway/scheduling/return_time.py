"""Return times of chains: P(return within H | idle so far, class), learned from observed pauses.

Pure and bounded. A class is how the turn ended, the tool it called, and the pace of its chain: after a long pause another
long one is likely. A class with few pauses is smoothed by all classes together, and those by a prior. The prior is pauses
of coding agents after a tool call: P50 9 s, P90 71 s, P99 611 s.
"""

from bisect import bisect_right
from typing import NamedTuple

EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0, 91.0, 128.0, 181.0, 256.0, 362.0, 512.0, 900.0)
"""Bin edges in seconds, a factor of about the square root of two apart. After the last one a run counts as ended."""
_PACES = (2.2, 9.0, 33.0, 109.0)
_PRIOR = (1, 2, 5, 8, 17, 14, 12, 11, 7, 5, 4, 3, 3, 2, 2, 1, 1, 1, 1)
_PRIOR_NEVER = 3.0
_LEAN = 20.0
"""Weight in pauses of the table by which a class is smoothed."""
_FORGET = 0.999


class ReturnClass(NamedTuple):
    """How the turn before the pause ended: its finish reason and the tool it called (empty for none or unknown). `pace` is
    of the chain's last pause; `keep_s` is how long the caller asked to keep the prefix."""

    finish: str
    tool: str = ""
    pace: int = -1
    keep_s: float = 0.0


def pace(last_s: float | None) -> int:
    """Return the class of the chain's last pause: up to 2.2, 9, 33, 109 seconds (0 to 3) or more (4). -1 before the first
    pause."""
    if last_s is None:
        return -1
    return bisect_right(_PACES, last_s)


class _Table:
    """Number of pauses that ended in each bin, and of those without a return. Older pauses weigh less."""

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
        """Return the number of pauses longer than each edge."""
        if self._from is None:
            rest, sums = self.never, [self.never]
            for count in reversed(self.counts):
                rest += count
                sums.append(rest)
            self._from = sums[::-1]
        return self._from


def _at(longer: list[float], pause_s: float) -> float:
    """Return the number of pauses longer than `pause_s`, linear between edges."""
    if pause_s >= EDGES[-1]:
        return longer[-1]
    i = bisect_right(EDGES, pause_s) - 1
    part = (pause_s - EDGES[i]) / (EDGES[i + 1] - EDGES[i])
    return longer[i] + part * (longer[i + 1] - longer[i])


class ReturnTimeModel:
    """Return times by class. After `max_kinds` classes a new one uses the table of all."""

    def __init__(self, max_kinds: int = 1024) -> None:
        self._max_kinds = max_kinds
        self._prior = _Table()
        self._prior.counts = [float(count) for count in _PRIOR]
        self._prior.never = _PRIOR_NEVER
        self._all = _Table()
        self._by_class: dict[ReturnClass, _Table] = {}

    def observe(self, return_class: ReturnClass, pause_s: float | None) -> None:
        """Record a pause of `pause_s` seconds, None if the chain never returned."""
        self._all.observe(pause_s)
        if return_class not in self._by_class and len(self._by_class) < self._max_kinds:
            self._by_class[return_class] = _Table()
        if (table := self._by_class.get(return_class)) is not None:
            table.observe(pause_s)

    def chance(self, return_class: ReturnClass, idle_s: float, within_s: float) -> float:
        """Return the chance that a chain idle for `idle_s` returns within the next `within_s`."""
        if idle_s >= EDGES[-1]:
            return 0.0
        still, later = self._longer(return_class, idle_s), self._longer(return_class, idle_s + within_s)
        return max(0.0, 1.0 - later / still) if still > 0 else 0.0

    def _longer(self, return_class: ReturnClass, pause_s: float) -> float:
        """Return the smoothed share of pauses longer than `pause_s`."""
        prior = self._prior.longer()
        share = _at(prior, pause_s) / prior[0]
        for table in (self._all, self._by_class.get(return_class)):
            if table is not None:
                longer = table.longer()
                share = (_at(longer, pause_s) + _LEAN * share) / (longer[0] + _LEAN)
        return share

    def check(self) -> None:
        """Assert the invariants. For tests."""
        assert len(self._by_class) <= self._max_kinds
        for table in (self._all, *self._by_class.values()):
            assert min(table.counts) >= 0 and table.never >= 0
            assert all(a >= b for a, b in zip(table.longer(), table.longer()[1:], strict=False))
