"""What a step costs and who caused it. Pure: no clock, integers of nanoseconds in and out.

    dt ~ a + g * groups + r * rows + k * chunks + b * chunk tokens + c * tokens * context + d * KV bytes + e * KV bytes²

Design §8, but for the square: what does not fit into the processor's caches any more makes every byte dearer, so that all that
is read together costs more than its parts (docs/log.md). A row is a sequence that computes one token, a chunk one that computes
more: a row costs more than a token of a chunk, and a chunk something of its own. Rows of about one length are a group, whose
attention is computed in one go (spans.py). What is there once, however many use it, is shared equally by those: `a`, which
reading the weights is the most of, by all, and each `g` by its group; of the square each pays its own bytes times those of all;
the rest is paid by who caused it. These are the Shapley values of the fitted model. The shares are scaled so that they sum to
dt exactly.
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
_SIZE = 8
_PAIRS = [(i, j) for i in range(_SIZE) for j in range(i, _SIZE)]
_KV_BYTES, _KV_SQUARES = _PAIRS.index((0, 6)), _PAIRS.index((6, 6))


class Caused(NamedTuple):
    """Of one sequence in one step: tokens computed, their mean context, and KV bytes read. Rows of one `group` share a pass."""

    tokens: int
    context: float
    kv_bytes: int
    group: int = 0


class Cost(NamedTuple):
    """What was fitted, in seconds: of a step, a group of rows, a row, a chunk, a chunk's token, a token * its context, a byte
    of KV beside as many others as there were lately."""

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
        self.gram = [0.0] * len(_PAIRS)
        """Of each pair of columns once."""
        self.target = [0.0] * _SIZE
        self._forget = forget

    def add(self, row: Row, dt_s: float, weight: float) -> None:
        forget, scaled = self._forget, [weight * value for value in row]
        products = [one * other for i, one in enumerate(scaled) for other in row[i:]]
        self.gram = [kept * forget + new for kept, new in zip(self.gram, products, strict=True)]
        self.target = [kept * forget + new * dt_s for kept, new in zip(self.target, scaled, strict=True)]


class StepCostModel:
    """Fits the coefficients (seconds), none negative. Steps with and without chunks are remembered apart."""

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
        """(a, b, c, d) of dt ~ a + b * tokens + c * tokens * context + d * KV bytes, for one decoding sequence beside the KV
        that there was lately."""
        a, g, r, _, b, c, d = self.cost
        return a + g + max(0.0, r - b), b, c, d

    @property
    def _bytes_beside(self) -> float:
        """Of KV in a step, as a byte of it saw it lately."""
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
        """By relative errors, so that a few long prefills do not outweigh many short decodes."""
        weight = max(dt_s, 1e-6) ** -2
        expected_s = sum(value * x for value, x in zip(self._fit, row, strict=True))
        if self._seen < SETTLED or expected_s <= 0:
            return weight
        return weight * min(1.0, DISTURBED / max(abs(dt_s / expected_s - 1), 1e-9))

    def expected(self, caused: Sequence[Caused]) -> float:
        """Seconds that the fit expects of a step of these."""
        total = _total(caused)
        return float(sum(value * x for value, x in zip(self._fit, total, strict=True)))

    def split(self, caused: Sequence[Caused], dt_ns: int) -> list[int]:
        """Shares in nanoseconds, in the order given; they sum to `dt_ns` exactly."""
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
    """One, groups, rows, chunks, chunk tokens, tokens * context, KV bytes and their square."""
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
