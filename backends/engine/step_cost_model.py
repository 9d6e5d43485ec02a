"""Cost of a step and its split among sequences. Pure: no clock, integer nanoseconds in and out.

    dt ~ a + g * groups + r * rows + k * chunks + b * chunk tokens + c * tokens * context + d * KV bytes + e * KV bytes²

Design §8, plus the square: KV beyond the processor's caches makes every byte more expensive, so a step's KV costs more than the
sum of its parts (docs/log.md). A row is a decode, a sequence that computes one token. A chunk is a prefill, one that computes
more. A row costs more than a token of a chunk, and a chunk has a fixed cost. Rows of about one length are a group, whose
attention is one pass (attention_layout.py).

Shared costs are split equally: `a`, mostly memory traffic of the weights, among all sequences, and each `g` among its group. Of
the square each sequence pays its own bytes times those of all. The rest is paid by the sequence that caused it. These are the
Shapley values of the fitted model. The shares are scaled so that they sum to dt exactly.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Coefficients = tuple[float, float, float, float]

FORGET = 0.998
"""Weight of a step in the next fit: about the last 500 steps count."""
FORGET_CHUNKS = 0.98
"""The same for steps with a chunk. These are rare: the last 50 count, whatever the number of steps between them."""
DISTURBED = 0.05
"""Relative error against the fit above which a step's weight falls in proportion. Step times have a long tail from other
activity of the machine, and least squares would follow it (docs/log.md).
"""
SETTLED = 64
"""Steps before outliers lose weight."""
SOLVE_EVERY = 16
"""Steps between two solutions; a solution takes 0.1 ms."""
_SIZE = 8
_PAIRS = [(i, j) for i in range(_SIZE) for j in range(i, _SIZE)]
_KV_BYTES, _KV_SQUARES = _PAIRS.index((0, 6)), _PAIRS.index((6, 6))


class Caused(NamedTuple):
    """Tokens computed, their mean context, and KV bytes read of one sequence in one step. Rows of one `group` share a pass."""

    tokens: int
    context: float
    kv_bytes: int
    group: int = 0


class Cost(NamedTuple):
    """Fitted seconds of a step, a group of rows, a row, a chunk, a chunk's token, a token * its context, and a byte of KV at
    the recent KV size of a step.
    """

    step: float
    group: float
    row: float
    chunk: float
    token: float
    mixed: float
    kv_byte: float


Row = tuple[float, ...]


class _Sums:
    """Normal equations with exponential forgetting."""

    def __init__(self, forget: float) -> None:
        self.gram = [0.0] * len(_PAIRS)
        """The upper triangle of the matrix, row by row."""
        self.target = [0.0] * _SIZE
        self._forget = forget

    def add(self, row: Row, dt_s: float, weight: float) -> None:
        forget, scaled = self._forget, [weight * value for value in row]
        products = [one * other for i, one in enumerate(scaled) for other in row[i:]]
        self.gram = [kept * forget + new for kept, new in zip(self.gram, products, strict=True)]
        self.target = [kept * forget + new * dt_s for kept, new in zip(self.target, scaled, strict=True)]


class StepCostModel:
    """Fits the coefficients (seconds), none negative. Steps with and without chunks have separate sums."""

    def __init__(self) -> None:
        self._plain, self._mixed = _Sums(FORGET), _Sums(FORGET_CHUNKS)
        self._fit = [0.0] * _SIZE
        self._seen = 0

    @property
    def cost(self) -> Cost:
        a, g, r, k, b, c, d, e = self._fit
        return Cost(a, g, r, k, b, c, d + e * self._bytes_beside)

    @property
    def coefficients(self) -> Coefficients:
        """Return (a, b, c, d) of dt ~ a + b * tokens + c * tokens * context + d * KV bytes, for one decode at the recent KV
        size.
        """
        a, g, r, _, b, c, d = self.cost
        return a + g + max(0.0, r - b), b, c, d

    @property
    def _bytes_beside(self) -> float:
        """Return the recent KV bytes of a step, weighted by bytes."""
        gram = self._plain.gram
        return gram[_KV_SQUARES] / gram[_KV_BYTES] if gram[_KV_BYTES] > 0 else 0.0

    def observe(self, caused: Sequence[Caused], dt_s: float) -> None:
        total = _total(caused)
        (self._mixed if total[3] else self._plain).add(total, dt_s, self._weight(total, dt_s))
        self._seen += 1
        if self._seen % SOLVE_EVERY == 0 or self._seen < SOLVE_EVERY:
            gram, target = _plus(self._plain.gram, self._mixed.gram), _plus(self._plain.target, self._mixed.target)
            self._fit = least_squares(_square(gram), target)

    def _weight(self, row: Row, dt_s: float) -> float:
        """Return the weight for relative errors, so that a few long prefills do not outweigh many short decodes."""
        weight = max(dt_s, 1e-6) ** -2
        expected_s = sum(value * x for value, x in zip(self._fit, row, strict=True))
        if self._seen < SETTLED or expected_s <= 0:
            return weight
        return weight * min(1.0, DISTURBED / max(abs(dt_s / expected_s - 1), 1e-9))

    def expected(self, caused: Sequence[Caused]) -> float:
        """Return the seconds that the fit predicts for a step of these."""
        total = _total(caused)
        return float(sum(value * x for value, x in zip(self._fit, total, strict=True)))

    def split(self, caused: Sequence[Caused], dt_ns: int) -> list[int]:
        """Return shares in nanoseconds, in the given order; they sum to `dt_ns` exactly."""
        if len(caused) == 1:
            return [dt_ns]
        weights = self._weights(caused)
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

    def _weights(self, caused: Sequence[Caused]) -> list[float]:
        a, g, r, k, b, c, d, e = self._fit
        sizes = Counter(one.group for one in caused if one.tokens == 1)
        shared = a / len(caused)
        byte = d + e * sum(one.kv_bytes for one in caused)
        in_group = {group: shared + r + g / size for group, size in sizes.items()}
        return [
            in_group[group] + c * context + byte * num_bytes
            if tokens == 1
            else shared + k + (b + c * context) * tokens + byte * num_bytes
            for tokens, context, num_bytes, group in caused
        ]


def _square(pairs: list[float]) -> list[list[float]]:
    whole = [[0.0] * _SIZE for _ in range(_SIZE)]
    for (i, j), value in zip(_PAIRS, pairs, strict=True):
        whole[i][j] = whole[j][i] = value
    return whole


def _plus(left: list[float], right: list[float]) -> list[float]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _total(caused: Sequence[Caused]) -> Row:
    """Return 1, groups, rows, chunks, chunk tokens, tokens * context, KV bytes and their square."""
    groups = set[int]()
    rows = chunks = tokens = kv_bytes = 0
    mixed = 0.0
    for num_tokens, context, num_bytes, group in caused:
        if num_tokens == 1:
            rows += 1
            groups.add(group)
            mixed += context
        else:
            chunks += 1
            tokens += num_tokens
            mixed += num_tokens * context
        kv_bytes += num_bytes
    return (1.0, float(len(groups)), float(rows), float(chunks), float(tokens), mixed, float(kv_bytes), float(kv_bytes) ** 2)


def least_squares(gram: list[list[float]], target: list[float]) -> list[float]:
    """Solve for coefficients that are not negative: drop the most negative one and solve the rest, until none is.

    A small ridge, relative to each column, settles columns that the steps so far do not distinguish.
    """
    kept = [i for i in range(len(target)) if gram[i][i] > 0]
    while kept:
        scale = [gram[i][i] ** -0.5 for i in kept]
        system = [
            [gram[i][j] * si * sj + (1e-6 if i == j else 0.0) for j, sj in zip(kept, scale, strict=True)] + [target[i] * si]
            for i, si in zip(kept, scale, strict=True)
        ]
        solution = _eliminate(system)
        worst = min(range(len(kept)), key=solution.__getitem__)
        if solution[worst] >= 0:
            fit = [0.0] * len(target)
            for i, value, s in zip(kept, solution, scale, strict=True):
                fit[i] = value * s
            return fit
        del kept[worst]
    return [0.0] * len(target)


def _eliminate(system: list[list[float]]) -> list[float]:
    """Solve by Gauss-Jordan elimination: a symmetric positive matrix with its right side as the last column."""
    size = len(system)
    for i in range(size):
        pivot = 1.0 / system[i][i]
        system[i] = [value * pivot for value in system[i]]
        for j in range(size):
            if j != i and (factor := system[j][i]):
                system[j] = [value - factor * above for value, above in zip(system[j], system[i], strict=True)]
    return [row[-1] for row in system]
