"""`headway router train OUTCOMES.jsonl --out FILE`, `grade OUTCOMES.jsonl --artefact FILE` and `escalation OUTCOMES.jsonl
--artefact FILE`. gateway/training/outcome_reader.py describes the format of outcomes."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from gateway.commands.format_table import columns
from gateway.ledger.outcomes import outcomes_of
from gateway.routing.quality import Artefact, ArtefactError, Metrics, QualityModel, Reliability
from gateway.training.fit_escalation import fit_escalation
from gateway.training.grade import Grade, grade
from gateway.training.outcome import Outcome, TrainingError
from gateway.training.outcome_reader import read_outcomes
from gateway.training.tenant_share import capped
from gateway.training.train import train


def train_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    if not arguments.outcomes and not arguments.ledger:
        print("no outcomes: name a file of outcomes, a --ledger, or both", file=sys.stderr)
        return 1
    try:
        rows = list(read_outcomes(Path(arguments.outcomes))) if arguments.outcomes else []
        tiers = arguments.tiers.split(",") if arguments.tiers else list(rows[0].outcomes) if rows else []
        rows += _posted(arguments.ledger, tiers) if arguments.ledger else []
        rows = _capped(rows, arguments.tenant_share)
        sources = [Path(arguments.outcomes).name] if arguments.outcomes else []
        sources += ["--ledger", Path(arguments.ledger).name] if arguments.ledger else []
        command = shlex.join(["headway", "router", "train", *sources, "--tiers", ",".join(tiers)])
        print(f"training on {len(rows):,} outcomes of {', '.join(tiers)} ...", file=sys.stderr)
        artefact = train(rows, tiers=tiers, command=command)
    except (OSError, TrainingError) as error:
        print(f"{arguments.outcomes or arguments.ledger}: {error}", file=sys.stderr)
        return 1
    size = _write(artefact, Path(arguments.out))
    for tier, model in artefact.tiers.items():
        if model.metrics is not None:
            print(_metrics_text(tier, artefact.top, model.metrics, model.reliability))
    print(f"{arguments.out}: {size:,} bytes")
    return 0


def _posted(ledger: str, tiers: Sequence[str]) -> list[Outcome]:
    """Return the outcomes that cover every tier; others cannot be compared. Raises TrainingError or OSError."""
    if not tiers:
        raise TrainingError("no tiers: name the tiers to compare, such as --tiers small,large")
    posted = list(outcomes_of(Path(ledger)))
    whole = [outcome for outcome in posted if all(tier in outcome.outcomes for tier in tiers)]
    print(f"{ledger}: {len(whole):,} of {len(posted):,} questions have an outcome for each tier", file=sys.stderr)
    return whole


def _capped(rows: list[Outcome], share: float) -> list[Outcome]:
    kept = capped(rows, share)
    if left_out := len(rows) - len(kept):
        print(f"{left_out:,} outcomes of tenants with more than {share:.0%} of all rows are left out", file=sys.stderr)
    return kept


def grade_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        artefact = QualityModel.load(Path(arguments.artefact)).artefact
        grades = grade(artefact, read_outcomes(Path(arguments.outcomes)))
    except (OSError, ArtefactError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 1
    for tier, grade_ in grades.items():
        print(_grade_text(tier, artefact, grade_))
    return 0


def escalation_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    """Write the fitted bar into the artefact, for every tier whose confidence is in the outcomes."""
    path = Path(arguments.artefact)
    try:
        model = QualityModel.load(path)
        artefact = model.artefact
        rows = list(read_outcomes(Path(arguments.outcomes)))
        tiers = dict(artefact.tiers)
        for tier in [arguments.tier] if arguments.tier else list(tiers):
            if tier not in tiers:
                raise TrainingError(f"the artefact has no tier {tier}: use one of {', '.join(tiers)}")
            estimate = _estimate_of(model, tier)
            fitted = fit_escalation(rows, estimate, tier=tier, top=artefact.top, keep=arguments.keep, tokens=arguments.tokens)
            tiers[tier] = msgspec.structs.replace(tiers[tier], escalation=fitted)
            print(
                f"{tier}: escalate if P(good answer) is below {fitted.bar:.3f} after {fitted.tokens} tokens: "
                f"{fitted.share:.1%} of {fitted.rows:,} rows, {fitted.catch:.1%} of the worse answers, {fitted.alarm:.1%} of "
                f"the good ones; keeps {fitted.kept:.1%} of {artefact.top}'s accuracy"
            )
    except (OSError, ArtefactError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 1
    _write(msgspec.structs.replace(artefact, tiers=tiers), path)
    return 0


def _estimate_of(model: QualityModel, tier: str) -> Callable[[Outcome], float]:
    return lambda row: model.judge(row.messages, row.tools)[tier]


def _write(artefact: Artefact, path: Path) -> int:
    body = msgspec.json.format(msgspec.json.encode(artefact), indent=1)
    path.write_bytes(body + b"\n")
    return len(body)


def _metrics_text(tier: str, top: str, metrics: Metrics, reliability: tuple[Reliability, ...]) -> str:
    rows = [("estimated", "observed", "rows")]
    rows += [(f"{bin_.estimated:.3f}", f"{bin_.observed:.3f}", f"{bin_.rows:,}") for bin_ in reliability]
    return (
        f"{tier}, as good as {top} on {metrics.base_rate:.1%} of {metrics.rows:,} rows: log loss {metrics.log_loss:.4f} "
        f"(base rate {metrics.log_loss_of_base_rate:.4f}), AUC {metrics.auc:.4f}, ECE {metrics.ece:.4f}\n"
        f"{columns(rows, right=frozenset(range(3)))}\n"
    )


def _grade_text(tier: str, artefact: Artefact, grade_: Grade) -> str:
    rows = [("bar", f"to {tier}", f"kept of {artefact.top}'s accuracy")]
    rows += [(f"{bar.bar:.3f}", f"{bar.share:.1%}", f"{bar.kept:.1%}") for bar in grade_.bars]
    table = columns(rows, right=frozenset(range(3)))
    return f"{_metrics_text(tier, artefact.top, grade_.metrics, grade_.reliability)}\n{table}\n"
