"""What a step costs and who caused it. Pure: no clock, integers of nanoseconds in and out.

    dt ~ a + b * tokens + c * tokens * context + d * KV bytes      (design §8)

`a`, which reading the weights is the most of, is shared equally; the rest by what each sequence caused; the shares are
scaled so that they sum to dt exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

Coefficients = tuple[float, float, float, float]

FORGET = 0.995
"""Weight of a step in the next one's fit: about the last 200 steps count."""
SWEEPS = 2


class Caused(NamedTuple):
    """Of one sequence in one step: tokens computed, their mean context, and KV bytes read."""

    tokens: int
    context: float
    kv_bytes: int


class StepCost:
    """Fits the coefficients (seconds), none negative, by coordinate descent on decayed normal equations.

    Each step counts by 1 / dt, so that a few long prefills do not outweigh many short decodes.
    """

    def __init__(self) -> None:
        self._gram = [[0.0] * 4 for _ in range(4)]
        self._target = [0.0] * 4
        self._fit = [0.0] * 4

    @property
    def coefficients(self) -> Coefficients:
        a, b, c, d = self._fit
        return a, b, c, d

    def observe(self, caused: Sequence[Caused], dt_s: float) -> None:
        tokens = sum(one.tokens for one in caused)
        row = (1.0, float(tokens), sum(o.tokens * o.context for o in caused), float(sum(o.kv_bytes for o in caused)))
        weight = 1 / max(dt_s, 1e-6)
        for i, (gram, value) in enumerate(zip(self._gram, row, strict=True)):
            for j in range(4):
                gram[j] = gram[j] * FORGET + weight * value * row[j]
            self._target[i] = self._target[i] * FORGET + weight * value * dt_s
        for _ in range(SWEEPS):
            self._sweep()

    def _sweep(self) -> None:
        for i, gram in enumerate(self._gram):
            if gram[i] > 0:
                residual = self._target[i] - sum(g * x for g, x in zip(gram, self._fit, strict=True))
                self._fit[i] = max(0.0, self._fit[i] + residual / gram[i])

    def split(self, caused: Sequence[Caused], dt_ns: int) -> list[int]:
        """Shares in nanoseconds, in the order given; they sum to `dt_ns` exactly."""
        if len(caused) == 1:
            return [dt_ns]
        a, b, c, d = self._fit
        weights = [a / len(caused) + o.tokens * (b + c * o.context) + d * o.kv_bytes for o in caused]
        total = sum(weights)
        if total <= 0:
            weights, total = [1.0] * len(caused), float(len(caused))
        shares, given, reached = [], 0, 0.0
        for weight in weights:
            reached += weight
            until = round(dt_ns * min(1.0, reached / total))
            shares.append(until - given)
            given = until
        shares[-1] += dt_ns - given
        return shares
