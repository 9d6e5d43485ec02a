"""Margin by which actual TTFT exceeds predicted TTFT, by worker, and separately for batch work. Pure.

Half of the requests exceed their prediction. An SLO is compared with a bound that one request in fifty exceeds.
"""

import math

FLOOR_S = 0.05
"""Seconds added to a prediction in the margin: errors of short predictions are mostly jitter, which does not shrink with
them."""
SHARE = 0.98
"""Share of requests within the bound. Measured in docs/log.md (Batch work under overload)."""
_STEP = 0.25
_FIRST, _MOST = 0.5, 20.0
TOGETHER_S = 0.25
"""Seconds after an increase during which overruns of earlier predictions count as one stall and are ignored. Larger values
miss independent overruns. Measured in docs/log.md (What a standstill teaches)."""
_HALF_LIFE_S = 60.0
"""Seconds without observations in which the margin halves. If a high margin shed all requests, no observation could correct
it."""


class TtftMargin:
    """`margin` is the quantile SHARE of (actual - predicted) / (predicted + FLOOR_S), never below zero."""

    def __init__(self) -> None:
        self._margin, self._at = _FIRST, 0.0
        self._rose_at = -math.inf

    def margin(self, now: float) -> float:
        return float(self._margin * 0.5 ** (max(0.0, now - self._at) / _HALF_LIFE_S))

    def observe(self, predicted_s: float, actual_s: float, now: float, *, predicted_at: float) -> None:
        """Take one step of stochastic approximation: a large one up if late, a small one down if not. Times are in seconds."""
        if predicted_at < self._rose_at > now - TOGETHER_S:
            return
        margin = self.margin(now)
        late = actual_s > predicted_s + margin * (predicted_s + FLOOR_S)
        self._margin = min(_MOST, max(0.0, margin + _STEP * (SHARE - (not late))))
        self._at = now
        if late:
            self._rose_at = now
