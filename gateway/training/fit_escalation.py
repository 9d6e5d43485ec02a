"""When a small model's answer should be begun anew on a better tier, once its first tokens are seen: fitted from outcomes.

What was estimated of the question and how sure the model was of its own words are weighed together,

    logit P(good) = bias + prior * logit(quality) - doubt * log(-log(confidence))

because the same confidence means more where the estimate is low. The answer stands when P(good) is at the bar or over it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gateway.routing.escalation import Escalation, Shares, log_odds, unsureness
from gateway.training.calibrate import rounded
from gateway.training.logistic import Floats, logistic
from gateway.training.outcome import Outcome, TrainingError, as_good

_AT_LEAST = 50
_BIN_ROWS, _MAX_BINS = 60, 8
_QUANTILES = 21
_FEW = 8
"""So few answers of a kind say nothing of their bin: those of all bins stand for them."""
_PENALTY = 0.5
_STEPS = 50


def fit_escalation(
    outcomes: Sequence[Outcome], estimate: Callable[[Outcome], float], *, tier: str, top: str, keep: float, tokens: int
) -> Escalation:
    """The lowest bar with which the answers keep `keep` of the top tier's accuracy, if the tier begins all of them; the highest
    when none does. `estimate` is the chance that was told beforehand of the tier's answer: rows that it was learned from make
    it look better than it is.

    Raises TrainingError when too few outcomes say how confident the tier was.
    """
    known = [row for row in outcomes if tier in row.confidence and tier in row.outcomes and top in row.outcomes]
    if len(known) < _AT_LEAST:
        raise TrainingError(f"{len(known)} outcomes say how confident {tier} was, {_AT_LEAST} or more are needed")
    quality = np.array([estimate(row) for row in known])
    prior = np.array([log_odds(one) for one in quality])
    unsure = np.array([unsureness(row.confidence[tier]) for row in known])
    good = np.array([as_good(row, tier, top) for row in known])
    weights = _fit(np.stack([np.ones(len(known)), prior, -unsure], axis=1), good)
    told = logistic(weights[0] + weights[1] * prior - weights[2] * unsure)
    right = np.array([row.outcomes[tier] for row in known])
    right_top = np.array([row.outcomes[top] for row in known])
    bar, cut, kept = _bar(told, right, right_top, keep)
    again = told < bar
    return Escalation(
        tokens=tokens,
        bar=rounded(bar),
        bias=rounded(float(weights[0])),
        prior=rounded(float(weights[1])),
        doubt=rounded(float(weights[2])),
        shares=_shares(quality, told, good),
        catch=rounded(again[~good].mean()) if (~good).any() else 0.0,
        alarm=rounded(again[good].mean()) if good.any() else 0.0,
        kept=rounded(kept),
        share=rounded(cut / len(known)),
        rows=len(known),
    )


def _bar(told: Floats, right: Floats, right_top: Floats, keep: float) -> tuple[float, int, float]:
    """Where to cut, how many are below, and what is kept then."""
    order = np.argsort(told, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((right_top - right)[order])])
    kept = (right.sum() + gained) / max(1e-9, right_top.sum())  # kept[k]: the k least likely escalate
    # A bar can only stand between two different chances.
    ordered = told[order]
    cuts = [0, *(int(i) + 1 for i in np.flatnonzero(np.diff(ordered) > 0)), len(told)]
    cut = next((k for k in cuts if kept[k] >= keep), cuts[-1])
    if cut == 0:
        bar = 0.0
    elif cut == len(told):
        bar = 1.0
    else:
        bar = float(ordered[cut - 1] + ordered[cut]) / 2
    return bar, cut, float(kept[cut])


def _fit(columns: Floats, good: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Floats:
    """Newton's steps on the penalized log loss; a weight that would be negative is none."""
    free = [True, True, True]
    while True:
        kept = columns[:, free]
        weights = np.zeros(kept.shape[1])
        for _ in range(_STEPS):
            chance = logistic(np.einsum("ij,j->i", kept, weights))
            slope = np.einsum("ij,i->j", kept, chance - good) + _PENALTY * weights
            bend = np.einsum("ij,i,ik->jk", kept, chance * (1 - chance), kept) + _PENALTY * np.eye(len(weights))
            step = np.linalg.solve(bend, slope)
            weights -= step
            if np.abs(step).max() < 1e-9:
                break
        whole = np.zeros(3)
        whole[free] = weights
        if whole[1] >= 0 and whole[2] >= 0:
            return whole
        free = [True, free[1] and whole[1] > 0, free[2] and whole[2] > 0]


def _shares(quality: Floats, told: Floats, good: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> tuple[Shares, ...]:
    """Rows in bins of the estimate, and in each how the chance came out for good and for worse answers."""
    order = np.argsort(quality, kind="stable")
    number = max(1, min(_MAX_BINS, len(order) // _BIN_ROWS))
    found: list[Shares] = []
    for rows in np.array_split(order, number):
        kinds = []
        for kind in (good, ~good):
            mine = told[rows][kind[rows]]
            kinds.append(_quantiles(mine if len(mine) >= _FEW else told[kind]))
        mean = rounded(float(quality[rows].mean()))
        if found and mean <= found[-1].quality:
            continue  # ties of the estimate, cut in two
        found.append(Shares(mean, *kinds))
    return tuple(found)


def _quantiles(chances: Floats) -> tuple[float, ...]:
    if not len(chances):
        return ()
    return tuple(rounded(float(one)) for one in np.quantile(chances, np.linspace(0, 1, _QUANTILES)))
