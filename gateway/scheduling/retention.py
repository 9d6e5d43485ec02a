"""Whose pages are worth keeping: a soft score for every chain, never a pin. Pure and bounded; the longest unseen is forgotten.

waits and is mostly resident   1        it goes next
waits and is cold              0.05     it may wait long, and is computed anew anyway
pauses                         P(return within H | idle so far, class), not under 0.02 while its caller wants it kept
"""

from collections import OrderedDict
from dataclasses import dataclass

from gateway.scheduling.return_time import ReturnClass, ReturnTimeModel, pace

WITHIN_S = 30.0
"""H at most. From 20 s to 100 s it makes 2 % of throughput in simulation, where pages last for a minute; see `horizon_s`."""
_OF_TURNOVER = 0.5
WAITS_COLD = 0.05
LEAST = 0.001
"""Zero would mean: release now."""
WANTED = 0.02
"""The least while a caller's `cache_control` lasts: it outlives what was idle for minutes and not so marked, never what is
likely to be wanted. How likely those are to return who mark their prompts is learned, as of every class."""


@dataclass(slots=True)
class _Pause:
    """`since` is None while a turn waits or runs; `last_s` is the length of the chain's last pause."""

    return_class: ReturnClass
    since: float | None
    last_s: float | None = None
    keep_s: float = 0.0


def horizon_s(capacity_tokens: float, prefill_rate: float) -> float:
    """H of a worker: half of the time in which it could fill its pages anew. Whoever comes back later finds them gone."""
    return min(WITHIN_S, _OF_TURNOVER * capacity_tokens / prefill_rate)


class Retention:
    """Chains by name, at most `max_chains`."""

    def __init__(self, max_chains: int = 100_000) -> None:
        self.times = ReturnTimeModel()
        self._max_chains = max_chains
        self._pauses: OrderedDict[str, _Pause] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pauses)

    def turn_arrived(self, chain: str, now: float) -> None:
        """Its next turn came: the pause is over, and learned from."""
        pause = self._pauses.get(chain)
        if pause is not None and pause.since is not None:
            pause.last_s = now - pause.since
            self.times.observe(pause.return_class, pause.last_s)
            pause.since = None
            self._pauses.move_to_end(chain)

    def turn_finished(self, chain: str, now: float, *, finish: str, tool: str = "", keep_s: float = 0.0) -> None:
        """A turn ended and a pause begins; the caller may have asked to keep it for so long."""
        before = self._pauses.pop(chain, None)
        last_s = before.last_s if before else None
        self._pauses[chain] = _Pause(ReturnClass(finish, tool, pace(last_s), keep_s), now, last_s, keep_s)
        if len(self._pauses) > self._max_chains:
            self._pauses.popitem(last=False)

    def ended(self, chain: str) -> None:
        """It will not come back: its class has one more that never did."""
        pause = self._pauses.pop(chain, None)
        if pause is not None and pause.since is not None:
            self.times.observe(pause.return_class, None)

    def chance(self, chain: str, now: float, within_s: float = WITHIN_S) -> float:
        """That it returns within H; of a chain that never paused nothing is known, and it is kept."""
        pause = self._pauses.get(chain)
        if pause is None or pause.since is None:
            return 1.0
        return self.times.chance(pause.return_class, max(0.0, now - pause.since), within_s)

    def score(self, chain: str, now: float, *, waits: bool = False, resident: bool = True, within_s: float = WITHIN_S) -> float:
        """In (0, 1]: pages of lower scores go first."""
        if waits:
            return 1.0 if resident else WAITS_COLD
        return max(self._least(chain, now), self.chance(chain, now, within_s))

    def _least(self, chain: str, now: float) -> float:
        pause = self._pauses.get(chain)
        wanted = pause is not None and pause.since is not None and now - pause.since < pause.keep_s
        return WANTED if wanted else LEAST

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert len(self._pauses) <= self._max_chains
        self.times.check()
