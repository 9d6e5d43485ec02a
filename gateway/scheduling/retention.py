"""Retention scores of chains, by which workers evict pages. A score never pins. Pure and bounded: the least recent go
first.

waits, mostly resident   1        it runs next
waits, cold              0.05     it may wait long and is prefilled again in any case
pauses                   P(return within H | idle so far, class), at least 0.02 while its caller asks to keep it
"""

from collections import OrderedDict
from dataclasses import dataclass

from gateway.scheduling.return_time import ReturnClass, ReturnTimeModel, pace

WITHIN_S = 30.0
"""Largest H, in seconds; see `horizon_s`. In simulation, with pages that last for a minute, 20 s to 100 s differ by 2 % of
throughput."""
_OF_TURNOVER = 0.5
"""Share of the time in which a worker could refill all its pages."""
WAITS_COLD = 0.05
"""Score of a waiting chain whose pages are mostly evicted. Measured in docs/log.md (Order and retention of runs, in
simulation)."""
LEAST = 0.001
"""Lowest score. Zero would release the pages at once."""
WANTED = 0.02
"""Lowest score while a caller's `cache_control` lasts. The chain outlives unmarked ones that were idle for minutes, but
none that is likely to return. The chance of return of marked chains is learned, as for every class."""


@dataclass(slots=True)
class _Pause:
    """State of one chain. `since` is None while a turn waits or runs; `last_s` is the length of the chain's last pause."""

    return_class: ReturnClass
    since: float | None
    last_s: float | None = None
    keep_s: float = 0.0


def horizon_s(capacity_tokens: float, prefill_rate: float) -> float:
    """Return H of a worker, in seconds: at most half of the time to refill all its pages. Pages of a later return are
    evicted anyway."""
    return min(WITHIN_S, _OF_TURNOVER * capacity_tokens / prefill_rate)


class Retention:
    """Scores of at most `max_chains` chains."""

    def __init__(self, max_chains: int = 100_000) -> None:
        self.times = ReturnTimeModel()
        self._max_chains = max_chains
        self._pauses: OrderedDict[str, _Pause] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pauses)

    def turn_arrived(self, chain: str, now: float) -> None:
        """Record the end of a chain's pause, and learn from its length."""
        pause = self._pauses.get(chain)
        if pause is not None and pause.since is not None:
            pause.last_s = now - pause.since
            self.times.observe(pause.return_class, pause.last_s)
            pause.since = None
            self._pauses.move_to_end(chain)

    def turn_finished(self, chain: str, now: float, *, finish: str, tool: str = "", keep_s: float = 0.0) -> None:
        """Record the end of a turn and the start of a pause. `keep_s` is how long the caller asked to keep the pages."""
        previous = self._pauses.pop(chain, None)
        last_s = previous.last_s if previous else None
        self._pauses[chain] = _Pause(ReturnClass(finish, tool, pace(last_s), keep_s), now, last_s, keep_s)
        if len(self._pauses) > self._max_chains:
            self._pauses.popitem(last=False)

    def ended(self, chain: str) -> None:
        """Record that a chain ended, as a pause of its class without a return."""
        pause = self._pauses.pop(chain, None)
        if pause is not None and pause.since is not None:
            self.times.observe(pause.return_class, None)

    def chance(self, chain: str, now: float, within_s: float = WITHIN_S) -> float:
        """Return the chance that a chain returns within `within_s`. 1 for a chain that never paused, so that it is kept."""
        pause = self._pauses.get(chain)
        if pause is None or pause.since is None:
            return 1.0
        return self.times.chance(pause.return_class, max(0.0, now - pause.since), within_s)

    def score(self, chain: str, now: float, *, waits: bool = False, resident: bool = True, within_s: float = WITHIN_S) -> float:
        """Return the score in (0, 1]. Pages with lower scores are evicted first."""
        if waits:
            return 1.0 if resident else WAITS_COLD
        return max(self._least(chain, now), self.chance(chain, now, within_s))

    def _least(self, chain: str, now: float) -> float:
        pause = self._pauses.get(chain)
        wanted = pause is not None and pause.since is not None and now - pause.since < pause.keep_s
        return WANTED if wanted else LEAST

    def check(self) -> None:
        """Assert the invariants. For tests."""
        assert len(self._pauses) <= self._max_chains
        self.times.check()
