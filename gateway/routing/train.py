"""From labelled outcomes to a quality artefact: logistic regression a tier, calibrated on rows that it was not trained on.

Deterministic: the same outcomes give the same artefact, byte for byte. Alone in using numpy, and never on a request's way.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.request import Message, Tool
from gateway.routing.features import features
from gateway.routing.quality import Artefact, FeatureSettings, Metrics, QualityModel, Reliability, TierModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FOLDS = 5
_STEPS = 200
_L2 = (3.0, 10.0, 30.0)
"""Penalties to try; the one with the least log loss out of fold is taken."""
_NGRAM_PENALTY = 10.0
"""How much dearer an n-gram's weight is. Content words are many and say little: on the lab's curriculum this lowers the
log loss by 0.01; structure tells most."""
_MAX_POINTS = 48
_MIN_BLOCK = 25
"""Rows behind a calibration point, at least: fewer say little of a probability near one."""
_BINS = 10


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation up to the answer, and which tiers answered it right."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    outcomes: dict[str, bool]


class TrainingError(ValueError):
    """The outcomes cannot be trained on; the message says why."""


class _Rows(NamedTuple):
    """Sparse yes/no rows: row i has indices[starts[i]:starts[i + 1]]."""

    indices: Ints
    starts: Ints

    def take(self, rows: Ints) -> "_Rows":
        parts = [self.indices[self.starts[row] : self.starts[row + 1]] for row in rows]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        return _Rows(np.concatenate(parts), starts)

    def logits(self, weights: Floats) -> Floats:
        sums: Floats = np.add.reduceat(weights[self.indices], self.starts[:-1])
        return sums

    def gradient(self, errors: Floats, size: int) -> Floats:
        spread = np.repeat(errors, np.diff(self.starts))
        return np.bincount(self.indices, weights=spread, minlength=size).astype(np.float64)


def as_good(outcome: Outcome, tier: str, top: str) -> bool:
    """Right, or the top tier was wrong as well."""
    return outcome.outcomes[tier] or not outcome.outcomes[top]


def train(
    rows: Iterable[Outcome],
    *,
    tiers: Sequence[str],
    command: str = "",
    settings: FeatureSettings | None = None,
    l2: float = 1.0,
) -> Artefact:
    """`tiers` from the cheapest to the best; the last is what the others are compared with. Raises TrainingError."""
    settings = settings or FeatureSettings()
    size = 1 << settings.bits
    outcomes = list(rows)
    _check(outcomes, tiers)
    top = tiers[-1]
    lists = [features(row.messages, row.tools, bits=settings.bits) for row in outcomes]
    table = _Rows(
        np.concatenate([np.asarray(one, dtype=np.int64) for one in lists]),
        np.concatenate([[0], np.cumsum([len(one) for one in lists])]),
    )
    folds = np.array([_fold(row) for row in outcomes])
    models = {}
    for tier in tiers[:-1]:
        labels = np.array([as_good(row, tier, top) for row in outcomes], dtype=np.float64)
        models[tier] = _train_tier(table, labels, folds, size)
    return Artefact(top=top, features=settings, tiers=models, rows=len(outcomes), data=fingerprint(outcomes), command=command)


class Grade(NamedTuple):
    """Of one tier on outcomes that it was perhaps not trained on: metrics, and for each bar what going by it would give."""

    metrics: Metrics
    reliability: tuple[Reliability, ...]
    bars: tuple["Bar", ...]


class Bar(NamedTuple):
    """Sending to the tier what is estimated at `bar` or more: the share that goes there, and accuracy over the top's."""

    bar: float
    share: float
    kept: float


def grade(artefact: Artefact, rows: Iterable[Outcome]) -> dict[str, Grade]:
    """By tier. Raises TrainingError when an outcome does not tell about every tier of the artefact."""
    outcomes = list(rows)
    _check(outcomes, [*artefact.tiers, artefact.top])
    model = QualityModel(artefact)
    estimates = [model.judge(row.messages, row.tools) for row in outcomes]
    right_top = np.array([row.outcomes[artefact.top] for row in outcomes], dtype=np.float64)
    grades = {}
    for tier in artefact.tiers:
        labels = np.array([as_good(row, tier, artefact.top) for row in outcomes], dtype=np.float64)
        right = np.array([row.outcomes[tier] for row in outcomes], dtype=np.float64)
        chances = np.array([one[tier] for one in estimates])
        bars = tuple(_bar(bar, chances, right, right_top) for bar in (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975))
        grades[tier] = Grade(_metrics(chances, labels), reliability(chances, labels), bars)
    return grades


def fingerprint(outcomes: Sequence[Outcome]) -> str:
    """Of the rows and their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in outcomes:
        digest.update(msgspec.json.encode(row) + b"\n")
    return f"blake2b-16:{digest.hexdigest()}"


def isotonic(scores: Floats, labels: Floats) -> list[tuple[float, float]]:
    """Rising (score, probability) points by pooling adjacent violators, each smoothed by two rows at the
    base rate: no probability is zero or one unless all rows are alike."""
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
    """Bins of equal width; empty ones are left out."""
    bins = np.minimum((chances * _BINS).astype(int), _BINS - 1)
    chosen = [bins == index for index in range(_BINS)]
    return tuple(
        Reliability(_round(chances[rows].mean()), _round(labels[rows].mean()), int(rows.sum())) for rows in chosen if rows.any()
    )


def _train_tier(table: _Rows, labels: Floats, folds: Ints, size: int) -> TierModel:
    tried = [(l2, _out_of_fold(table, labels, folds, size, l2)) for l2 in _L2]
    l2, held_out = min(tried, key=lambda pair: _log_loss(_logistic(pair[1]), labels))
    calibrated = np.zeros(len(labels))
    for fold in set(folds.tolist()):  # calibration is graded on rows that it has not seen either
        xs, ys = zip(*isotonic(held_out[folds != fold], labels[folds != fold]), strict=True)
        calibrated[folds == fold] = np.interp(held_out[folds == fold], xs, ys)
    scale, weights = _quantized(_fit(table, labels, size, l2))
    return TierModel(
        l2=l2,
        scale=scale,
        weights=base64.b64encode(weights.tobytes()).decode(),
        points=tuple((_round(x), _round(y)) for x, y in isotonic(held_out, labels)),
        reliability=reliability(calibrated, labels),
        metrics=_metrics(calibrated, labels),
    )


def _out_of_fold(table: _Rows, labels: Floats, folds: Ints, size: int, l2: float) -> Floats:
    """The logit of every row by a model that did not see it."""
    logits = np.zeros(len(labels))
    for fold in set(folds.tolist()):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        logits[outside] = table.take(outside).logits(_fit(table.take(inside), labels[inside], size, l2))
    return logits


def _fit(rows: _Rows, labels: Floats, size: int, l2: float) -> Floats:
    """Weights of a logistic regression by full-batch Adam with a decaying rate; the bias is a feature like any other.

    Minimizes the sum of log losses + half the penalty times the squared weights; n-grams, the upper half, pay more.
    """
    weights, first, second = np.zeros(size), np.zeros(size), np.zeros(size)
    penalty = np.full(size, l2)
    penalty[size // 2 :] *= _NGRAM_PENALTY
    for step in range(1, _STEPS + 1):
        gradient = rows.gradient(_logistic(rows.logits(weights)) - labels, size) + penalty * weights
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient * gradient
        rate = 0.05 * (1.0 - (step - 1) / _STEPS)
        weights -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-9)
    return weights


def _logistic(logits: Floats) -> Floats:
    chances: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))
    return chances


def _quantized(weights: Floats) -> tuple[float, NDArray[np.int8]]:
    scale = float(np.abs(weights).max()) / 127 or 1.0
    return scale, np.rint(weights / scale).astype(np.int8)


def _metrics(chances: Floats, labels: Floats) -> Metrics:
    base = float(labels.mean())
    return Metrics(
        rows=len(labels),
        base_rate=_round(base),
        log_loss=_round(_log_loss(chances, labels)),
        log_loss_of_base_rate=_round(_log_loss(np.full(len(labels), base), labels)),
        auc=_round(auc(chances, labels)),
        ece=_round(sum(abs(b.estimated - b.observed) * b.rows for b in reliability(chances, labels)) / len(labels)),
    )


def _log_loss(chances: Floats, labels: Floats) -> float:
    sure = np.clip(chances, 1e-6, 1 - 1e-6)
    return float(-np.mean(labels * np.log(sure) + (1 - labels) * np.log(1 - sure)))


def auc(chances: Floats, labels: Floats) -> float:
    """The chance that a good row is estimated above a bad one, ties counting half; one half when all rows are alike."""
    good = float(labels.sum())
    bad = len(labels) - good
    if not good or not bad:
        return 0.5
    _, inverse, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][labels > 0].sum() - good * (good + 1) / 2) / (good * bad))


def _bar(bar: float, chances: Floats, right: Floats, right_top: Floats) -> Bar:
    sent = chances >= bar
    kept = float(np.where(sent, right, right_top).sum() / max(1.0, right_top.sum()))
    return Bar(bar, _round(sent.mean()), _round(kept))


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    rising: list[tuple[float, float]] = []
    for x, y in points:
        if not rising or x > rising[-1][0] + 1e-4:
            rising.append((x, max(y, rising[-1][1] if rising else y)))
    return rising


def _fold(row: Outcome) -> int:
    """By what is asked, so that a repeated question never is on both sides."""
    text = next((message.content for message in reversed(row.messages) if message.role == "user"), "")
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % _FOLDS


def _check(outcomes: Sequence[Outcome], tiers: Sequence[str]) -> None:
    if len(tiers) < 2:
        raise TrainingError(f"needs two tiers or more to compare, got {list(tiers)}")
    if len(outcomes) < 2 * _FOLDS:
        raise TrainingError(f"needs {2 * _FOLDS} outcomes or more, got {len(outcomes)}")
    for number, row in enumerate(outcomes, 1):
        if missing := [tier for tier in tiers if tier not in row.outcomes]:
            raise TrainingError(f"outcome {number} says nothing of {', '.join(missing)}")


def _round(value: Any) -> float:
    return round(float(value), 5)
