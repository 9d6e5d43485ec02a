"""Trains a quality artefact from labelled outcomes: logistic regression by tier, calibrated on rows outside its training set.

Deterministic: the same outcomes give the same artefact, byte for byte.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.routing.features import features
from gateway.routing.quality import Artefact, FeatureSettings, Hashed, Scalar, TierModel
from gateway.training.calibrate import isotonic, log_loss, metrics_of, reliability, rounded
from gateway.training.logistic import Floats, Ints, Penalties, Table, fit, logistic
from gateway.training.outcome import Outcome, as_good, check_outcomes, fingerprint

FOLDS = 5
PENALTIES = (
    Penalties(3000.0, 1.0, 30.0),
    Penalties(100.0, 1.0),
    Penalties(30.0, 3.0),
    Penalties(10.0, 3.0),
    Penalties(3.0, 3.0),
)
"""Candidate penalties, from the strongest to the weakest; the one with the lowest log loss out of fold is used.

Structural columns are many and overlap. They predict nearly everything if questions have the same form, elsewhere nearly
nothing.
"""


def train(
    rows: Iterable[Outcome],
    *,
    tiers: Sequence[str],
    command: str = "",
    settings: FeatureSettings | None = None,
    penalties: Sequence[Penalties] = PENALTIES,
) -> Artefact:
    """Train an artefact. `tiers` are from the cheapest to the best; the others are compared with the last. Raises
    TrainingError."""
    settings = settings or FeatureSettings()
    outcomes = list(rows)
    check_outcomes(outcomes, tiers, at_least=2 * FOLDS)
    top = tiers[-1]
    table = Table([features(row.messages, row.tools, bits=settings.bits) for row in outcomes], bits=settings.bits)
    folds = np.array([_fold(row) for row in outcomes])
    models = {}
    for tier in tiers[:-1]:
        labels = np.array([as_good(row, tier, top) for row in outcomes], dtype=np.float64)
        models[tier] = _train_tier(table, labels, folds, penalties)
    return Artefact(top=top, features=settings, tiers=models, rows=len(outcomes), data=fingerprint(outcomes), command=command)


def _train_tier(table: Table, labels: Floats, folds: Ints, penalties: Sequence[Penalties]) -> TierModel:
    held_out = _out_of_fold(table, labels, folds, penalties)
    best = min(penalties, key=lambda one: log_loss(logistic(held_out[one]), labels))
    logits = held_out[best]
    calibrated = np.zeros(len(labels))
    for fold in set(folds.tolist()):  # calibration too is graded on unseen rows
        xs, ys = zip(*isotonic(logits[folds != fold], labels[folds != fold]), strict=True)
        calibrated[folds == fold] = np.interp(logits[folds == fold], xs, ys)
    weights = table.unpacked(fit(table, labels, best))
    bounds = zip(weights.scalars, table.low, table.high, strict=True)
    return TierModel(
        bias=float(weights.bias),
        structure=_quantized(weights.structure),
        ngrams=_quantized(weights.ngrams),
        scalars=tuple(Scalar(rounded(weight), rounded(low), rounded(high)) for weight, low, high in bounds),
        penalties=(best.structure, best.ngrams, best.scalars),
        points=tuple((rounded(x), rounded(y)) for x, y in isotonic(logits, labels)),
        reliability=reliability(calibrated, labels),
        metrics=metrics_of(calibrated, labels),
    )


def _out_of_fold(table: Table, labels: Floats, folds: Ints, penalties: Sequence[Penalties]) -> dict[Penalties, Floats]:
    """Return, by penalties, each row's logit from a model that was not trained on it. Each fit starts at the previous
    weights."""
    found = {one: np.zeros(len(labels)) for one in penalties}
    for fold in sorted(set(folds.tolist())):
        outside: NDArray[np.bool_] = folds == fold
        inside_table, outside_table = table.part(~outside), table.part(outside)
        weights = None
        for one in penalties:
            weights = fit(inside_table, labels[~outside], one, weights)
            found[one][outside] = outside_table.logits(weights)
    return found


def _quantized(weights: Floats) -> Hashed:
    scale = float(np.abs(weights).max()) / 127 or 1.0
    return Hashed(scale=scale, weights=base64.b64encode(np.rint(weights / scale).astype(np.int8).tobytes()).decode())


def _fold(row: Outcome) -> int:
    """Return the fold of a row, by its question: a repeated question is never in both training and test."""
    return hashlib.blake2b(row.question.encode(errors="replace"), digest_size=2).digest()[0] % FOLDS
