"""Claim: trained on a set's own outcomes, the quality model routes better than chance and no worse than n-grams alone.

Method: RouteLLM's public outcomes of a weak (Mixtral-8x7B) and a strong (GPT-4-1106) model. Rows are ordered by the estimate;
the strong model takes the least certain ones, at the 10 quantiles of the estimates. PGR is the recovered part of the gap
between weak and strong accuracy. APGR is its mean over the share of strong calls (trapezoid). CPT50 and CPT80 are the least
shares that recover 50 and 80 %. In-domain: 5 folds; cross-domain: trained on the other set. Intervals: 1,000 bootstrap samples
of the rows. Peers: random, logistic regression on word unigrams and bigrams in the same folds, the oracle with both outcomes,
and RouteLLM's published best on the full sets.
"""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.report import Target, arguments, finish, progress, table
from gateway.request import Message
from gateway.routing.features import Features, features
from gateway.routing.quality import QualityModel
from gateway.training.logistic import Floats, Penalties, Table, fit
from gateway.training.outcome import Outcome
from gateway.training.train import train

PUBLISHED = {"gsm8k": 0.622, "mmlu": 0.603}
FOLDS = 5
_NGRAM_PENALTY = 1.0
_BITS = 14


class _Row(msgspec.Struct):
    prompt: str
    weak: bool
    strong: bool

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message(role="user", content=self.prompt),)


class Metrics(NamedTuple):
    apgr: float
    cpt50: float
    cpt80: float


Scorer = Callable[[Sequence[_Row], Sequence[_Row]], Floats]


def main() -> None:
    args = arguments(__doc__).parse_args()
    sets = {name: _read(args.data / "routing" / f"{name}.jsonl.gz") for name in ("gsm8k", "mmlu")}
    if args.quick:
        sets = {name: rows[:400] for name, rows in sets.items()}
    samples = 100 if args.quick else 1000
    lines, results, targets = [], {}, []
    for name, rows in sets.items():
        other = sets["mmlu" if name == "gsm8k" else "gsm8k"]
        scores = {
            "ours": _in_folds(rows, _ours),
            "n-grams": _in_folds(rows, _ngrams),
            "ours, from the other set": _ours(other, rows),
            "n-grams, from the other set": _ngrams(other, rows),
            "random": np.random.default_rng(0).random(len(rows)),
            "oracle": np.array([float(row.strong) - float(row.weak) for row in rows]),
        }
        for who, score in scores.items():
            found = grade(score, rows)
            low, high, deviation = _interval(score, rows, samples)
            lines.append((name, who, found.apgr, low, high, found.cpt50, found.cpt80))
            results[f"{name}: {who}"] = {**found._asdict(), "low": low, "high": high, "deviation": deviation}
        ours, peer = results[f"{name}: ours"], results[f"{name}: n-grams"]
        above = (ours["apgr"] - peer["apgr"]) / peer["deviation"]
        results[f"{name}: above n-grams"] = {"apgr": ours["apgr"] - peer["apgr"], "deviations": above}
        results[f"{name}: published"] = {"apgr": PUBLISHED[name]}
        targets += [Target(f"{name}_low", ours["low"], ">=", 0.5), Target(f"{name}_over_ngrams", above, ">=", -1.0)]
    print(table(("set", "router", "APGR", "2.5 %", "97.5 %", "CPT50", "CPT80"), lines))
    finish("route_public", results, targets)


def grade(score: Floats, rows: Sequence[_Row]) -> Metrics:
    """Return the metrics of a score; a higher score goes to the strong model first."""
    gain = np.array([float(row.strong) - float(row.weak) for row in rows])[np.argsort(-score, kind="stable")]
    return _graded(gain)


def _graded(gain: Floats) -> Metrics:
    """Return the metrics. `gain` is in the order in which rows go to the strong model."""
    total = float(gain.sum())
    if total <= 0:
        return Metrics(0.5, 1.0, 1.0)
    recovered = np.concatenate([[0.0], np.cumsum(gain)]) / total
    shares = np.linspace(0.0, 1.0, 11)
    at = recovered[np.rint(shares * len(gain)).astype(int)]
    apgr = float(np.trapezoid(at, shares))
    return Metrics(apgr, _least(recovered, 0.5), _least(recovered, 0.8))


def _least(recovered: Floats, wanted: float) -> float:
    return float(np.argmax(recovered >= wanted)) / (len(recovered) - 1)


def _interval(score: Floats, rows: Sequence[_Row], samples: int) -> tuple[float, float, float]:
    """Return the 2.5 and 97.5 % quantiles and the standard deviation of APGR over bootstrap samples."""
    rng = np.random.default_rng(1)
    gain = np.array([float(row.strong) - float(row.weak) for row in rows])
    found = []
    for _ in range(samples):
        drawn = rng.integers(0, len(rows), len(rows))
        found.append(_graded(gain[drawn][np.argsort(-score[drawn], kind="stable")]).apgr)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975)), float(np.std(found))


def _in_folds(rows: Sequence[_Row], scorer: Scorer) -> Floats:
    """Return estimates of rows from models that were not trained on them."""
    folds = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    score = np.zeros(len(rows))
    for fold in range(FOLDS):
        outside = np.flatnonzero(folds == fold)
        inside = [rows[i] for i in np.flatnonzero(folds != fold).tolist()]
        score[outside] = scorer(inside, [rows[i] for i in outside.tolist()])
        progress(f"{scorer.__name__.strip('_')}: fold {fold + 1} of {FOLDS}, {len(rows):,} rows")
    return score


def _ours(inside: Sequence[_Row], outside: Sequence[_Row]) -> Floats:
    outcomes = [Outcome(messages=row.messages, outcomes={"weak": row.weak, "strong": row.strong}) for row in inside]
    model = QualityModel(train(outcomes, tiers=("weak", "strong")))
    return np.array([-model.logits(model.features(row.messages, ()))["weak"] for row in outside])


def _ngrams(inside: Sequence[_Row], outside: Sequence[_Row]) -> Floats:
    """Return scores from hashed unigrams and bigrams only, each row normalised to length one."""
    both = Table([_bare(row) for row in (*inside, *outside)], bits=_BITS)
    known = np.arange(len(both)) < len(inside)
    labels = np.array([float(row.weak or not row.strong) for row in inside])
    weights = fit(both.part(known), labels, Penalties(1.0, _NGRAM_PENALTY, 1e9))
    return -both.part(~known).logits(weights)


def _bare(row: _Row) -> Features:
    return features(row.messages, (), bits=_BITS)._replace(structure=[])


def _read(path: Path) -> list[_Row]:
    with gzip.open(path, "rb") as lines:
        return [msgspec.json.decode(line, type=_Row) for line in lines]


if __name__ == "__main__":
    main()
