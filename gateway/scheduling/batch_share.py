"""Share of a worker's starts that batch requests get while other requests keep the worker busy. Pure.

A deficit counter as in deficit round robin. Each start of another request, while batch waits, earns batch
`share / (1 - share)` starts; a start of batch spends one.
"""

WINDOW = 32
"""Starts over which the recent pace is averaged. Derived: at the default share of a tenth they include three of batch."""


class BatchShare:
    """One worker's counter. `share` is between 0 and 1, exclusive, and may be set at any time."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._earned = 0.0
        self._recent = 1.0

    @property
    def is_owed(self) -> bool:
        """Whether a waiting batch request goes before others."""
        return self._earned >= 1.0

    @property
    def pace(self) -> float:
        """Batch's part of the recent starts that batch waited for, at least its share. 1 where batch competes with nothing."""
        return max(self.share, self._recent)

    def record_start(self, *, batch: bool, batch_waits: bool) -> None:
        """Record the start of a request. `batch_waits`: batch requests waited for the worker at that time."""
        if batch:
            self._earned = max(self._earned - 1.0, 0.0)
        elif batch_waits:
            earned = self.share / (1.0 - self.share)
            self._earned = min(self._earned + earned, 1.0 + earned)
        if batch_waits:
            self._recent += (batch - self._recent) / WINDOW
