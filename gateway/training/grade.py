"""Grades an artefact on labelled outcomes, and computes the results of routing by it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gateway.routing.quality import Artefact, Metrics, QualityModel, Reliability
from gateway.training.calibrate import metrics_of, reliability, rounded
from gateway.training.logistic import Floats
from gateway.training.outcome import Outcome, as_good, check_outcomes

_BARS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975)


class Bar(NamedTuple):
    """Result of sending requests with an estimate of `bar` or more to the tier: their share, and accuracy as a share of the top
    tier's."""

    bar: float
    share: float
    kept: float


class Grade(NamedTuple):
    """One tier's metrics on outcomes, and the results for each bar. The artefact may not have seen these outcomes."""

    metrics: Metrics
    reliability: tuple[Reliability, ...]
    bars: tuple[Bar, ...]


def grade(artefact: Artefact, rows: Iterable[Outcome]) -> dict[str, Grade]:
    """Return the grades by tier. Raises TrainingError if an outcome lacks a tier of the artefact."""
    outcomes = list(rows)
    check_outcomes(outcomes, [*artefact.tiers, artefact.top], at_least=10)
    model = QualityModel(artefact)
    estimates = [model.judge(row.messages, row.tools) for row in outcomes]
    right_top = np.array([row.outcomes[artefact.top] for row in outcomes], dtype=np.float64)
    grades = {}
    for tier in artefact.tiers:
        labels = np.array([as_good(row, tier, artefact.top) for row in outcomes], dtype=np.float64)
        right = np.array([row.outcomes[tier] for row in outcomes], dtype=np.float64)
        chances = np.array([one[tier] for one in estimates])
        bars = tuple(_bar(bar, chances, right, right_top) for bar in _BARS)
        grades[tier] = Grade(metrics_of(chances, labels), reliability(chances, labels), bars)
    return grades


def _bar(bar: float, chances: Floats, right: Floats, right_top: Floats) -> Bar:
    sent = chances >= bar
    kept = float(np.where(sent, right, right_top).sum() / max(1.0, right_top.sum()))
    return Bar(bar, rounded(sent.mean()), rounded(kept))
