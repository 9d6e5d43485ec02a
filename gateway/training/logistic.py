"""Logistic regression on sparse and dense columns, by L-BFGS. Deterministic. Uses numpy, and is never used while serving.

It avoids the matrix library, whose threads wait for each other on a busy machine. The sums are too small for it (17 s of
processor time became 0.5).
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.routing.features import Features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MEMORY = 8
_STEPS = 100
_CLOSE = 2e-5
"""Minimum relative decrease of the loss per step; below it the fit stops."""
_SEEN = 2
"""Minimum rows of a hashed column: one row predicts nothing about others."""


class Penalties(NamedTuple):
    """L2 penalties. Half of the penalty times the squared weight is added to the summed log loss."""

    structure: float
    ngrams: float
    scalars: float = 1.0


class Weights(NamedTuple):
    """Weights of each hashed index, and of each dense number in its own units."""

    bias: float
    structure: Floats
    ngrams: Floats
    scalars: Floats


class Table:
    """Feature rows. Column 0 is the bias, then dense numbers with mean zero and variance one, then hashed columns in enough
    rows."""

    def __init__(self, rows: Sequence[Features], *, bits: int) -> None:
        self.size = 1 << bits
        self.scalars = np.array([row.scalars for row in rows], dtype=np.float64)
        self.mean = self.scalars.mean(axis=0)
        self.deviation = np.maximum(self.scalars.std(axis=0), 1e-6)
        self.low, self.high = self.scalars.min(axis=0), self.scalars.max(axis=0)
        self.dense = np.hstack([np.ones((len(rows), 1)), (self.scalars - self.mean) / self.deviation])
        lengths = np.array([len(row.structure) + len(row.ngrams) for row in rows])
        hashed = np.concatenate(
            [np.array([*row.structure, *(i + self.size for i in row.ngrams)], dtype=np.int64) for row in rows]
        )
        share = np.concatenate(
            [np.repeat([1.0, 1.0 / math.sqrt(len(row.ngrams) or 1)], [len(row.structure), len(row.ngrams)]) for row in rows]
        )
        self.known, column, seen = np.unique(hashed, return_inverse=True, return_counts=True)
        often = seen >= _SEEN
        position = np.cumsum(often) - 1
        keep = often[column]
        self.known = self.known[often]
        self.row = np.repeat(np.arange(len(rows)), lengths)[keep]
        self.column = position[column[keep]]
        self.value = share[keep]

    def __len__(self) -> int:
        return len(self.dense)

    def part(self, rows: NDArray[np.bool_]) -> "Table":
        """Return a subset of the rows, with the same columns."""
        one: Table = object.__new__(Table)
        one.__dict__.update(self.__dict__)
        keep = rows[self.row]
        one.dense = self.dense[rows]
        one.row = (np.cumsum(rows) - 1)[self.row[keep]]
        one.column, one.value = self.column[keep], self.value[keep]
        return one

    def logits(self, weights: Floats) -> Floats:
        plain = self.dense.shape[1]
        sparse = np.bincount(self.row, weights=weights[plain:][self.column] * self.value, minlength=len(self))
        total: Floats = np.einsum("ij,j->i", self.dense, weights[:plain]) + sparse
        return total

    def gradient(self, errors: Floats) -> Floats:
        sparse = np.bincount(self.column, weights=errors[self.row] * self.value, minlength=len(self.known))
        return np.concatenate([np.einsum("ij,i->j", self.dense, errors), sparse])

    def penalty(self, penalties: Penalties) -> Floats:
        plain = np.full(self.dense.shape[1], penalties.scalars)
        plain[0] = 1e-3
        return np.concatenate([plain, np.where(self.known < self.size, penalties.structure, penalties.ngrams)])

    def unpacked(self, weights: Floats) -> Weights:
        plain = self.dense.shape[1]
        hashed = np.zeros(2 * self.size)
        hashed[self.known] = weights[plain:]
        scalars = weights[1:plain] / self.deviation
        return Weights(float(weights[0]) - _dot(scalars, self.mean), hashed[: self.size], hashed[self.size :], scalars)


def fit(table: Table, labels: Floats, penalties: Penalties, start: Floats | None = None) -> Floats:
    """Return the weights of the columns that minimize the penalized loss."""
    penalty = table.penalty(penalties)
    weights = np.zeros(len(penalty)) if start is None else start
    loss, slope = _loss(table, labels, penalty, weights)
    steps: deque[tuple[Floats, Floats, float]] = deque(maxlen=_MEMORY)
    for _ in range(_STEPS):
        direction = _direction(slope, steps)
        down = _dot(slope, direction)
        rate = 1.0 if steps else 1.0 / max(1.0, float(np.abs(slope).max()))
        while True:
            tried = weights - rate * direction
            new_loss, new_slope = _loss(table, labels, penalty, tried)
            if new_loss <= loss - 1e-4 * rate * down or rate < 1e-8:
                break
            rate /= 2
        moved, turned = tried - weights, new_slope - slope
        curvature = _dot(moved, turned)
        if curvature > 1e-12:
            steps.append((moved, turned, curvature))
        gained = loss - new_loss
        weights, loss, slope = tried, new_loss, new_slope
        if gained < _CLOSE * abs(loss):
            break
    return weights


def logistic(logits: Floats) -> Floats:
    chances: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))
    return chances


def _dot(a: Floats, b: Floats) -> float:
    return float(np.sum(a * b))


def _loss(table: Table, labels: Floats, penalty: Floats, weights: Floats) -> tuple[float, Floats]:
    logits = table.logits(weights)
    loss = float(np.sum(np.logaddexp(0.0, logits) - labels * logits) + 0.5 * np.sum(penalty * weights * weights))
    return loss, table.gradient(logistic(logits) - labels) + penalty * weights


def _direction(slope: Floats, steps: Sequence[tuple[Floats, Floats, float]]) -> Floats:
    """Return the gradient times an estimate of the inverse Hessian (two loops over the last steps)."""
    direction = slope.copy()
    shares = []
    for moved, turned, curvature in reversed(steps):
        share = _dot(moved, direction) / curvature
        shares.append(share)
        direction -= share * turned
    if steps:
        _, turned, curvature = steps[-1]
        direction *= curvature / _dot(turned, turned)
    for (moved, turned, curvature), share in zip(steps, reversed(shares), strict=True):
        direction += (share - _dot(turned, direction) / curvature) * moved
    return direction
