"""What a step costs and who caused it. Pure: no clock, integers of nanoseconds in and out.

    dt ~ a + g * groups + r * rows + k * chunks + b * chunk tokens + c * tokens * context + d * KV bytes      (design §8)

A row is a sequence that computes one token, a chunk one that computes more: a row costs more than a token of a chunk, and
a chunk something of its own. Rows of about one length are a group, whose attention is computed in one go (spans.py).
What is there once, however many use it, is shared equally by those: `a`, which reading the weights is the most of, by all,
and each `g` by its group; the rest is paid by who caused it. These are the Shapley values of the fitted model. The shares are
scaled so that they sum to dt exactly.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Coefficients = tuple[float, float, float, float]

FORGET = 0.998
"""Weight of a step in the next one's fit: about the last 500 steps count."""
FORGET_CHUNKS = 0.98
"""Of a step with a chunk: those are rare, and the last 50 count, however many others came between."""
DISTURBED = 0.05
"""A step that is further off than this share of what the fit expects counts less, in proportion: times have a long tail, of
whatever else the machine does, and squares would follow it (docs/log.md)."""
SETTLED = 64
"""Steps before the fit may doubt one."""
SOLVE_EVERY = 16
"""Steps between two solutions, which take a tenth of a millisecond."""
_SIZE = 7


class Caused(NamedTuple):
    """Of one sequence in one step: tokens computed, their mean context, and KV bytes read. Rows of one `group` share a pass."""

    tokens: int
    context: float
    kv_bytes: int
    group: int = 0


class Cost(NamedTuple):
    """What was fitted, in seconds: of a step, a group of rows, a row, a chunk, a chunk's token, a token * its context, a byte
    of KV."""

    step: float
    group: float
    row: float
    chunk: float
    token: float
    mixed: float
    kv_byte: float


Row = tuple[float, ...]


class _Sums:
    """Normal equations that forget."""

    def __init__(self, forget: float) -> None:
        self.gram = [[0.0] * _SIZE for _ in range(_SIZE)]
        self.target = [0.0] * _SIZE
        self._forget = forget

    def add(self, row: Row, dt_s: float, weight: float) -> None:
        for i, (gram, value) in enumerate(zip(self.gram, row, strict=True)):
            scaled = weight * value
            for j in range(_SIZE):
                gram[j] = gram[j] * self._forget + scaled * row[j]
            self.target[i] = self.target[i] * self._forget + scaled * dt_s


class StepCost:
    """Fits the coefficients (seconds), none negative. Steps with and without chunks are remembered apart."""

    def __init__(self) -> None:
        self._plain, self._mixed = _Sums(FORGET), _Sums(FORGET_CHUNKS)
        self._fit = [0.0] * _SIZE
        self._seen = 0

    @property
    def cost(self) -> Cost:
        return Cost(*self._fit)

    @property
    def coefficients(self) -> Coefficients:
        """(a, b, c, d) of dt ~ a + b * tokens + c * tokens * context + d * KV bytes, exact for one decoding sequence."""
        a, g, r, _, b, c, d = self._fit
        return a + g + max(0.0, r - b), b, c, d

    def observe(self, caused: Sequence[Caused], dt_s: float) -> None:
        total = (1.0, *(sum(column) for column in zip(*_rows(caused), strict=True)))
        (self._mixed if total[3] else self._plain).add(total, dt_s, self._weight(total, dt_s))
        self._seen += 1
        if self._seen % SOLVE_EVERY == 0 or self._seen < SOLVE_EVERY:
            grams = zip(self._plain.gram, self._mixed.gram, strict=True)
            target = _plus(self._plain.target, self._mixed.target)
            self._fit = least_squares([_plus(plain, mixed) for plain, mixed in grams], target)

    def _weight(self, row: Row, dt_s: float) -> float:
        """By relative errors, so that a few long prefills do not outweigh many short decodes."""
        weight = max(dt_s, 1e-6) ** -2
        expected_s = sum(value * x for value, x in zip(self._fit, row, strict=True))
        if self._seen < SETTLED or expected_s <= 0:
            return weight
        return weight * min(1.0, DISTURBED / max(abs(dt_s / expected_s - 1), 1e-9))

    def expected(self, caused: Sequence[Caused]) -> float:
        """Seconds that the fit expects of a step of these."""
        total = (1.0, *(sum(column) for column in zip(*_rows(caused), strict=True)))
        return float(sum(value * x for value, x in zip(self._fit, total, strict=True)))

    def split(self, caused: Sequence[Caused], dt_ns: int) -> list[int]:
        """Shares in nanoseconds, in the order given; they sum to `dt_ns` exactly."""
        if len(caused) == 1:
            return [dt_ns]
        a, *slopes = self._fit
        weights = [a / len(caused) + sum(s * x for s, x in zip(slopes, row, strict=True)) for row in _rows(caused)]
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


def _plus(left: list[float], right: list[float]) -> list[float]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _rows(caused: Sequence[Caused]) -> list[Row]:
    """All but the fixed part: groups (its share of one), rows, chunks, chunk tokens, tokens * context, KV bytes."""
    sizes = Counter(one.group for one in caused if one.tokens == 1)
    return [
        (1 / sizes[one.group], 1.0, 0.0, 0.0, one.context, float(one.kv_bytes))
        if one.tokens == 1
        else (0.0, 0.0, 1.0, float(one.tokens), one.tokens * one.context, float(one.kv_bytes))
        for one in caused
    ]


def least_squares(gram: list[list[float]], target: list[float]) -> list[float]:
    """Not negative: what comes out below zero is left out, the most negative first, and the rest solved again.

    A little ridge, relative to each column, decides what the steps so far cannot tell apart.
    """
    kept = [i for i in range(len(target)) if gram[i][i] > 0]
    while kept:
        scale = [gram[i][i] ** -0.5 for i in kept]
        system = [
            [gram[i][j] * si * sj + (1e-6 if i == j else 0.0) for j, sj in zip(kept, scale, strict=True)] + [target[i] * si]
            for i, si in zip(kept, scale, strict=True)
        ]
        found = _eliminate(system)
        worst = min(range(len(kept)), key=found.__getitem__)
        if found[worst] >= 0:
            fit = [0.0] * len(target)
            for i, value, s in zip(kept, found, scale, strict=True):
                fit[i] = value * s
            return fit
        del kept[worst]
    return [0.0] * len(target)


def _eliminate(system: list[list[float]]) -> list[float]:
    """Gauss-Jordan on a symmetric positive matrix with its right side as the last column."""
    size = len(system)
    for i in range(size):
        pivot = 1.0 / system[i][i]
        system[i] = [value * pivot for value in system[i]]
        for j in range(size):
            if j != i and (factor := system[j][i]):
                system[j] = [value - factor * above for value, above in zip(system[j], system[i], strict=True)]
    return [row[-1] for row in system]
