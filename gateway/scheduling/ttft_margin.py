"""How far predicted times to a first token fall short of what comes, learned per kind of request. Pure: time is an argument.

What is promised is held against a bound that one request in fifty exceeds, not against the prediction itself, which is
exceeded by half of them.
"""

import math

FLOOR_S = 0.05
"""Errors of short predictions are mostly the machine's jitter, which does not shrink with them."""
SHARE = 0.98
_STEP = 0.25
_FIRST, _MOST = 0.5, 20.0
TOGETHER_S = 0.25
"""What was predicted before the margin last rose and comes so soon after it was made late by the same: a standstill, after
which hundreds come at once, is learned a few times and not as often. Longer, and what is late by itself would count too seldom,
as it comes after what is not."""
_HALF_LIFE_S = 60.0
"""Without news the margin shrinks: whoever refuses everybody would never learn that they were wrong."""


class TtftMargin:
    """`margin` is the quantile SHARE of (came - predicted) / (predicted + FLOOR_S), never below zero."""

    def __init__(self) -> None:
        self._margin, self._at = _FIRST, 0.0
        self._rose_at = -math.inf

    def margin(self, now: float) -> float:
        return float(self._margin * 0.5 ** (max(0.0, now - self._at) / _HALF_LIFE_S))

    def observe(self, predicted_s: float, came_s: float, now: float, *, predicted_at: float) -> None:
        """One step of stochastic approximation: up by much when late, down by little when not."""
        if predicted_at < self._rose_at > now - TOGETHER_S:
            return
        margin = self.margin(now)
        late = came_s > predicted_s + margin * (predicted_s + FLOOR_S)
        self._margin = min(_MOST, max(0.0, margin + _STEP * (SHARE - (not late))))
        self._at = now
        if late:
            self._rose_at = now
