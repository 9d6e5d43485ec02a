"""Events of an answer: text, reasoning, and tool calls whose arguments come in pieces."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec

from gateway.request import ToolCall


class TextDelta(msgspec.Struct, frozen=True):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    text: str


class CallStart(msgspec.Struct, frozen=True):
    """Start of a call. `index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of a call's arguments, as JSON text. A truncated answer may leave them incomplete."""

    index: int
    text: str


Event = TextDelta | ReasoningDelta | CallStart | CallArguments


class Parser(Protocol):
    """Parser of one answer. The joined events do not depend on how the text is split into pieces."""

    def feed(self, text: str) -> list[Event]: ...

    def close(self) -> list[Event]:
        """End the answer and return the events of delayed text."""
        ...


class Calls:
    """Numbers the calls of one answer and assigns their ids."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self.count = 0

    def start(self, name: str) -> CallStart:
        self.count += 1
        return CallStart(self.count - 1, self._new_id(), name)

    def arguments(self, text: str) -> CallArguments:
        """Return a piece of arguments of the last started call."""
        return CallArguments(self.count - 1, text)


class Answer(NamedTuple):
    content: str
    tool_calls: tuple[ToolCall, ...]
    reasoning: str = ""


def assemble(events: Iterable[Event]) -> Answer:
    """Return the whole answer from its events."""
    content: list[str] = []
    reasoning: list[str] = []
    starts: list[CallStart] = []
    arguments: list[str] = []
    for event in events:
        match event:
            case TextDelta(text):
                content.append(text)
            case ReasoningDelta(text):
                reasoning.append(text)
            case CallStart():
                starts.append(event)
                arguments.append("")
            case CallArguments(index, text):
                arguments[index] += text
    calls = (ToolCall(id=s.id, name=s.name, arguments=a) for s, a in zip(starts, arguments, strict=True))
    return Answer("".join(content), tuple(calls), "".join(reasoning))


def may_begin(mark: str, text: str) -> int:
    """Return how many last characters of a text may begin a mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
