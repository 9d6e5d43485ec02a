"""Decides when the step under way is interrupted for the prefill of a prompt with a better priority. Pure.

The interrupted work is computed again, and the new prompt is charged for it. Interrupted time is at most SHARE of step time.
"""

from collections.abc import Iterable

SHARE = 0.05
MOST_NS = 50_000_000
"""Most nanoseconds that may be saved up to be lost at once: some steps of a small model."""


class StepInterrupt:
    """`lost_ns` is the time of interrupted steps that is not yet charged to a sequence."""

    def __init__(self) -> None:
        self.lost_ns = 0
        self._spare_ns = 0.0
        self._worst: int | None = None

    def begin(self, priorities: Iterable[int]) -> None:
        """Begin a step with sequences of these priorities."""
        self._worst = max(priorities, default=None)

    def should_interrupt(self, priority: int) -> bool:
        """Return whether a prompt of this priority may interrupt the step under way.

        May be called on any thread: at worst the answer is that of the previous step.
        """
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
