"""Parses the output of one answer into events, and at the end into a message."""

from collections.abc import Callable, Sequence

from gateway.parsers.events import Answer, Calls, Event, assemble
from gateway.parsers.output_format import OutputFormat
from gateway.request import Message, Tool


class OutputParser:
    def __init__(self, output_format: OutputFormat, tools: Sequence[Tool], new_id: Callable[[], str]) -> None:
        self._calls = Calls(new_id)
        self._parser = output_format.parser(self._calls, tools)
        self._events: list[Event] = []

    @property
    def num_calls(self) -> int:
        return self._calls.count

    def feed(self, text: str) -> list[Event]:
        events = self._parser.feed(text)
        self._events += events
        return events

    def close(self) -> list[Event]:
        """Return the events of delayed text."""
        events = self._parser.close()
        self._events += events
        return events

    def answer(self) -> Answer:
        return assemble(self._events)


def message_of(answer: Answer) -> Message:
    return Message(role="assistant", content=answer.content, tool_calls=answer.tool_calls, reasoning=answer.reasoning)
