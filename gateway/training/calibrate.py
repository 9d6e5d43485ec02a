"""Converts scores to probabilities and measures their quality."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.routing.quality import Metrics, Reliability
from gateway.training.logistic import Floats

_MAX_POINTS = 48
_MIN_BLOCK = 25
"""Minimum rows of a calibration point: fewer give a poor estimate of a probability near one."""
_BINS = 10


def isotonic(scores: Floats, labels: Floats) -> list[tuple[float, float]]:
    """Return rising (score, probability) points by pooling adjacent violators.

    Each is smoothed by two rows at the base rate: no probability is zero or one unless all rows have the same label.
    """
    order = np.argsort(scores, kind="stable")
    base = float(labels.mean())
    blocks: list[list[float]] = []  # rows, sum of scores, sum of labels
    for score, label in zip(scores[order].tolist(), labels[order].tolist(), strict=True):
        blocks.append([1.0, score, label])
        while len(blocks) > 1 and (
            blocks[-2][0] < _MIN_BLOCK or blocks[-2][2] * blocks[-1][0] >= blocks[-1][2] * blocks[-2][0]
        ):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    if len(blocks) > 1 and blocks[-1][0] < _MIN_BLOCK:
        last = blocks.pop()
        blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    points = [(total / rows, (right + 2 * base) / (rows + 2)) for rows, total, right in blocks]
    while len(points) > _MAX_POINTS:
        points = points[::2] if points[-1] in points[::2] else [*points[::2], points[-1]]
    return _rising(points)


def reliability(chances: Floats, labels: Floats) -> tuple[Reliability, ...]:
    """Return bins of equal width, without the empty ones."""
    bins = np.minimum((chances * _BINS).astype(int), _BINS - 1)
    chosen = [bins == index for index in range(_BINS)]
    return tuple(
        Reliability(rounded(chances[rows].mean()), rounded(labels[rows].mean()), int(rows.sum()))
        for rows in chosen
        if rows.any()
    )


def metrics_of(chances: Floats, labels: Floats) -> Metrics:
    base = float(labels.mean())
    return Metrics(
        rows=len(labels),
        base_rate=rounded(base),
        log_loss=rounded(log_loss(chances, labels)),
        log_loss_of_base_rate=rounded(log_loss(np.full(len(labels), base), labels)),
        auc=rounded(auc(chances, labels)),
        ece=rounded(sum(abs(b.estimated - b.observed) * b.rows for b in reliability(chances, labels)) / len(labels)),
    )


def log_loss(chances: Floats, labels: Floats) -> float:
    sure = np.clip(chances, 1e-6, 1 - 1e-6)
    return float(-np.mean(labels * np.log(sure) + (1 - labels) * np.log(1 - sure)))


def auc(chances: Floats, labels: Floats) -> float:
    """Return the probability that a good row is estimated above a bad one. Ties count half; it is 0.5 if all rows have the same
    label."""
    good = float(labels.sum())
    bad = len(labels) - good
    if not good or not bad:
        return 0.5
    _, inverse, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][labels > 0].sum() - good * (good + 1) / 2) / (good * bad))


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    rising: list[tuple[float, float]] = []
    for x, y in points:
        if not rising or x > rising[-1][0] + 1e-4:
            rising.append((x, max(y, rising[-1][1] if rising else y)))
    return rising


def rounded(value: Any) -> float:
    return round(float(value), 5)
