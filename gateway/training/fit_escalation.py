"""Fits from outcomes when to escalate a small model's answer to a better tier after its first tokens.

The prior estimate and the model's confidence in its own tokens are combined,

    logit P(good) = bias + prior * logit(quality) - doubt * log(-log(confidence))

because the same confidence means more if the estimate is low. The answer is kept if P(good) is at least the bar.
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
"""Minimum answers of a bin: with fewer, the distribution of all bins replaces it."""
_PENALTY = 0.5
_STEPS = 50


def fit_escalation(
    outcomes: Sequence[Outcome], estimate: Callable[[Outcome], float], *, tier: str, top: str, keep: float, tokens: int
) -> Escalation:
    """Fit the lowest bar with which the answers keep `keep` of the top tier's accuracy, if every request starts on `tier`.

    If no bar does, it is the highest. `estimate` is the prior probability of a good answer. Rows on which it was trained would
    make it look better than it is.

    Raises TrainingError if too few outcomes have the tier's confidence.
    """
    known = [row for row in outcomes if tier in row.confidence and tier in row.outcomes and top in row.outcomes]
    if len(known) < _AT_LEAST:
        raise TrainingError(f"{len(known)} outcomes have the confidence of {tier}, at least {_AT_LEAST} are needed")
    quality = np.array([estimate(row) for row in known])
    prior = np.array([log_odds(value) for value in quality])
    unsure = np.array([unsureness(row.confidence[tier]) for row in known])
    good = np.array([as_good(row, tier, top) for row in known])
    weights = _fit(np.stack([np.ones(len(known)), prior, -unsure], axis=1), good)
    chance = logistic(weights[0] + weights[1] * prior - weights[2] * unsure)
    right = np.array([row.outcomes[tier] for row in known])
    right_top = np.array([row.outcomes[top] for row in known])
    bar, cut, kept = _bar(chance, right, right_top, keep)
    again = chance < bar
    return Escalation(
        tokens=tokens,
        bar=rounded(bar),
        bias=rounded(float(weights[0])),
        prior=rounded(float(weights[1])),
        doubt=rounded(float(weights[2])),
        shares=_shares(quality, chance, good),
        catch=rounded(again[~good].mean()) if (~good).any() else 0.0,
        alarm=rounded(again[good].mean()) if good.any() else 0.0,
        kept=rounded(kept),
        share=rounded(cut / len(known)),
        rows=len(known),
    )


def _bar(chance: Floats, right: Floats, right_top: Floats, keep: float) -> tuple[float, int, float]:
    """Return the bar, the number of rows below it, and the share of accuracy kept."""
    order = np.argsort(chance, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((right_top - right)[order])])
    kept = (right.sum() + gained) / max(1e-9, right_top.sum())  # kept[k]: the k least likely escalate
    # A bar can only lie between two different probabilities.
    ordered = chance[order]
    cuts = [0, *(int(i) + 1 for i in np.flatnonzero(np.diff(ordered) > 0)), len(chance)]
    cut = next((k for k in cuts if kept[k] >= keep), cuts[-1])
    if cut == 0:
        bar = 0.0
    elif cut == len(chance):
        bar = 1.0
    else:
        bar = float(ordered[cut - 1] + ordered[cut]) / 2
    return bar, cut, float(kept[cut])


def _fit(columns: Floats, good: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Floats:
    """Minimize the penalized log loss by Newton steps. A weight that would be negative is set to zero."""
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


def _shares(quality: Floats, chance: Floats, good: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> tuple[Shares, ...]:
    """Return bins of the estimate, each with the distribution of the fitted probability for good and for worse answers."""
    order = np.argsort(quality, kind="stable")
    number = max(1, min(_MAX_BINS, len(order) // _BIN_ROWS))
    found: list[Shares] = []
    for rows in np.array_split(order, number):
        kinds = []
        for kind in (good, ~good):
            mine = chance[rows][kind[rows]]
            kinds.append(_quantiles(mine if len(mine) >= _FEW else chance[kind]))
        mean = rounded(float(quality[rows].mean()))
        if found and mean <= found[-1].quality:
            continue  # ties of the estimate, cut in two
        found.append(Shares(mean, *kinds))
    return tuple(found)


def _quantiles(chances: Floats) -> tuple[float, ...]:
    if not len(chances):
        return ()
    return tuple(rounded(float(one)) for one in np.quantile(chances, np.linspace(0, 1, _QUANTILES)))
