"""`headway router train OUTCOMES.jsonl --out FILE` and `headway router grade OUTCOMES.jsonl --artefact FILE`.

A line of outcomes: {"messages": [...], "tools": [...], "outcomes": {"small": true, "large": true}}, messages and tools as in a
chat request. Other fields are passed over: they describe the line, and are never learned from.
"""

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.commands.table import columns
from gateway.request import Message, Tool, ToolCall
from gateway.routing.quality import Artefact, ArtefactError, Metrics, QualityModel, Reliability
from gateway.routing.train import Grade, Outcome, TrainingError, grade, train


class _Function(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: Any = None


class _Named(msgspec.Struct, kw_only=True):
    function: _Function
    id: str = ""


class _Part(msgspec.Struct, kw_only=True):
    text: str = ""


class _Message(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_Named] | None = None
    tool_call_id: str | None = None


class _Line(msgspec.Struct, kw_only=True):
    messages: list[_Message]
    tools: list[_Named] = []
    outcomes: dict[str, bool]


def train_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        rows = list(read_outcomes(Path(arguments.outcomes)))
        tiers = arguments.tiers.split(",") if arguments.tiers else list(rows[0].outcomes) if rows else []
        command = shlex.join(["headway", "router", "train", Path(arguments.outcomes).name, "--tiers", ",".join(tiers)])
        print(f"training on {len(rows):,} outcomes of {', '.join(tiers)} ...", file=sys.stderr)
        artefact = train(rows, tiers=tiers, command=command)
    except (OSError, TrainingError) as error:
        print(f"{arguments.outcomes}: {error}", file=sys.stderr)
        return 1
    body = msgspec.json.format(msgspec.json.encode(artefact), indent=1)
    Path(arguments.out).write_bytes(body + b"\n")
    for tier, model in artefact.tiers.items():
        if model.metrics is not None:
            print(_metrics_text(tier, artefact.top, model.metrics, model.reliability))
    print(f"{arguments.out}: {len(body):,} bytes")
    return 0


def grade_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        artefact = QualityModel.load(Path(arguments.artefact)).artefact
        grades = grade(artefact, read_outcomes(Path(arguments.outcomes)))
    except (OSError, ArtefactError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 1
    for tier, found in grades.items():
        print(_grade_text(tier, artefact, found))
    return 0


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """Raises TrainingError with the line's number, or OSError."""
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _outcome(decoder.decode(line))
            except msgspec.DecodeError as error:
                raise TrainingError(f"line {number}: {error}") from error


def _outcome(line: _Line) -> Outcome:
    tools = tuple(
        Tool(name=tool.function.name, description=tool.function.description or "", parameters=tool.function.parameters)
        for tool in line.tools
    )
    return Outcome(messages=tuple(map(_message, line.messages)), tools=tools, outcomes=line.outcomes)


def _message(message: _Message) -> Message:
    content = message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=_arguments(call.function.arguments))
        for call in message.tool_calls or ()
    )
    role = "system" if message.role == "developer" else message.role
    given = {"role": role, "content": text, "tool_calls": calls, "tool_call_id": message.tool_call_id}
    return msgspec.convert(given, Message, from_attributes=True)


def _arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _metrics_text(tier: str, top: str, metrics: Metrics, reliability: tuple[Reliability, ...]) -> str:
    rows = [("estimated", "observed", "rows")]
    rows += [(f"{bin_.estimated:.3f}", f"{bin_.observed:.3f}", f"{bin_.rows:,}") for bin_ in reliability]
    return (
        f"{tier}, as good as {top} on {metrics.base_rate:.1%} of {metrics.rows:,} rows: log loss {metrics.log_loss:.4f} "
        f"(base rate {metrics.log_loss_of_base_rate:.4f}), AUC {metrics.auc:.4f}, ECE {metrics.ece:.4f}\n"
        f"{columns(rows, right=frozenset(range(3)))}\n"
    )


def _grade_text(tier: str, artefact: Artefact, found: Grade) -> str:
    rows = [("bar", f"to {tier}", f"kept of {artefact.top}'s accuracy")]
    rows += [(f"{bar.bar:.3f}", f"{bar.share:.1%}", f"{bar.kept:.1%}") for bar in found.bars]
    table = columns(rows, right=frozenset(range(3)))
    return f"{_metrics_text(tier, artefact.top, found.metrics, found.reliability)}\n{table}\n"
