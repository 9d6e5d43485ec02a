"""When the step under way is broken off, for a prompt that is to be read before what is in it. Pure.

What was computed of it is computed again, which the prompt that came pays for. So it takes at most SHARE of the time of steps.
"""

from collections.abc import Iterable

SHARE = 0.05
MOST_NS = 50_000_000
"""How much may be lost at once of what was saved up: some steps of a small model."""


class StepInterrupt:
    """`lost_ns` is time of steps that were broken off and nobody has paid for."""

    def __init__(self) -> None:
        self.lost_ns = 0
        self._spare_ns = 0.0
        self._worst: int | None = None

    def begin(self, priorities: Iterable[int]) -> None:
        """A step with sequences of these priorities."""
        self._worst = max(priorities, default=None)

    def should_interrupt(self, priority: int) -> bool:
        """Whether a prompt of this priority is worth the step under way. On any thread: at worst the answer is of the step
        before."""
        worst = self._worst
        return worst is not None and priority < worst and self._spare_ns > 0

    def end(self, spent_ns: int) -> None:
        self._worst = None
        self._spare_ns = min(self._spare_ns + SHARE * spent_ns, MOST_NS)

    def interrupted(self, spent_ns: int) -> None:
        self._worst = None
        self._spare_ns -= spent_ns
        self.lost_ns += spent_ns

    def take_lost_ns(self) -> int:
        lost, self.lost_ns = self.lost_ns, 0
        return lost
