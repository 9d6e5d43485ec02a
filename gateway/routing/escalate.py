"""When a small model's own confidence says that its answer should be begun anew on a better tier: fitted from outcomes."""

from collections.abc import Sequence

import numpy as np

from gateway.routing.calibrate import rounded
from gateway.routing.outcome import Outcome, TrainingError, as_good
from gateway.routing.quality import Escalation

_AT_LEAST = 50


def fit_escalation(outcomes: Sequence[Outcome], *, tier: str, top: str, keep: float, tokens: int) -> Escalation:
    """The lowest threshold with which the answers keep `keep` of the top tier's accuracy; the highest when none does.

    Raises TrainingError when too few outcomes say how confident the tier was.
    """
    known = [row for row in outcomes if tier in row.confidence and tier in row.outcomes and top in row.outcomes]
    if len(known) < _AT_LEAST:
        raise TrainingError(f"{len(known)} outcomes say how confident {tier} was, {_AT_LEAST} or more are needed")
    confidence = np.array([row.confidence[tier] for row in known])
    right = np.array([row.outcomes[tier] for row in known])
    right_top = np.array([row.outcomes[top] for row in known])
    good = np.array([as_good(row, tier, top) for row in known])
    order = np.argsort(confidence, kind="stable")
    # accuracy[k]: the k least confident escalate.
    gained = np.concatenate([[0.0], np.cumsum((right_top - right)[order])])
    kept = (right.sum() + gained) / max(1e-9, right_top.sum())
    # A threshold can only stand between two different confidences.
    ordered = confidence[order]
    cuts = [0, *(int(i) + 1 for i in np.flatnonzero(np.diff(ordered) > 0)), len(known)]
    cut = next((k for k in cuts if kept[k] >= keep), cuts[-1])
    below = np.zeros(len(known), dtype=bool)
    below[order[:cut]] = True
    if cut == 0:
        threshold = 0.0
    elif cut == len(known):
        threshold = 1.0 + 1e-6
    else:
        threshold = float(ordered[cut - 1] + ordered[cut]) / 2
    return Escalation(
        tokens=tokens,
        threshold=rounded(threshold),
        catch=rounded(below[~good].mean()) if (~good).any() else 0.0,
        alarm=rounded(below[good].mean()) if good.any() else 0.0,
        kept=rounded(kept[cut]),
        share=rounded(cut / len(known)),
        rows=len(known),
    )
