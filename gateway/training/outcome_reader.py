"""Reads labelled outcomes from JSON lines, in either of two forms:

    {"messages": [...], "tools": [...], "outcomes": {"small": true, "large": true}, "confidence": {"small": 0.8}}
    {"prompt": "...", "model": "small", "right": true}      one line a model; lines of the same question are merged

`prompt` is one user message. `score` (any number) may replace `right`. Other fields describe the line and are ignored.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.request import Message, Tool, ToolCall
from gateway.training.outcome import Outcome, TrainingError


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


class _OutcomeLine(msgspec.Struct, kw_only=True):
    messages: list[_Message] = []
    prompt: str | None = None
    tools: list[_Named] = []
    outcomes: dict[str, bool | float] = {}
    confidence: dict[str, float] | float | None = None
    model: str | None = None
    right: bool | None = None
    score: float | None = None


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """Yield the outcomes. Raises TrainingError with the line's number, or OSError."""
    with path.open("rb") as lines:
        yield from joined(_decoded(lines))


def parse_outcome(line: bytes) -> Outcome:
    """Parse one line. Raises TrainingError or msgspec.DecodeError."""
    return _outcome(msgspec.json.decode(line, type=_OutcomeLine))


def _decoded(lines: Iterable[bytes]) -> Iterator[Outcome]:
    decoder = msgspec.json.Decoder(_OutcomeLine)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _outcome(decoder.decode(line))
        except (msgspec.DecodeError, TrainingError) as error:
            raise TrainingError(f"line {number}: {error}") from error


def joined(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Merge rows of a single model with others of the same tenant and question, in the order of each question's first row."""
    waiting: dict[bytes, Outcome] = {}
    for one in outcomes:
        if len(one.outcomes) > 1:
            yield one
            continue
        key = msgspec.json.encode((one.tenant, one.messages, one.tools))
        old = waiting.get(key)
        if old is not None:
            both = {"outcomes": old.outcomes | one.outcomes, "confidence": old.confidence | one.confidence}
            one = msgspec.structs.replace(old, **both)
        waiting[key] = one
    yield from waiting.values()


def _outcome(line: _OutcomeLine) -> Outcome:
    messages = tuple(map(_message, line.messages))
    if line.prompt is not None:
        messages += (Message(role="user", content=line.prompt),)
    if not messages:
        raise TrainingError("it has neither `messages` nor `prompt`: add one")
    outcomes = {tier: float(value) for tier, value in line.outcomes.items()}
    confidence = line.confidence if isinstance(line.confidence, dict) else {}
    if line.model is not None:
        value = line.score if line.score is not None else line.right
        if value is None:
            raise TrainingError("it has `model`, but neither `right` nor `score`: add one")
        outcomes[line.model] = float(value)
        if isinstance(line.confidence, float):
            confidence = {line.model: line.confidence}
    if not outcomes:
        raise TrainingError("it has neither `outcomes` nor `model`: add one")
    tools = tuple(
        Tool(name=tool.function.name, description=tool.function.description or "", parameters=tool.function.parameters)
        for tool in line.tools
    )
    return Outcome(messages=messages, tools=tools, outcomes=outcomes, confidence=confidence)


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
