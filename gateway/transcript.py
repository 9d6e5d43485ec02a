"""What a model has said so far in one answer: its text and its tool calls, as events and in the end as a message."""

from collections.abc import Callable

from gateway.api.tool_calls import Answer, Event, HermesParser, TextDelta, assemble
from gateway.request import Message


class Transcript:
    """Calls are only looked for where tools were offered; elsewhere text is text."""

    def __init__(self, *, has_tools: bool, new_id: Callable[[], str]) -> None:
        self._parser = HermesParser(new_id) if has_tools else None
        self._events: list[Event] = []
        self._texts: list[str] = []

    @property
    def num_calls(self) -> int:
        return self._parser.num_calls if self._parser else 0

    def feed(self, text: str) -> list[Event]:
        if self._parser is None:
            self._texts.append(text)
            return [TextDelta(text)] if text else []
        events = self._parser.feed(text)
        self._events += events
        return events

    def close(self) -> list[Event]:
        """What was held back."""
        events = self._parser.close() if self._parser else []
        self._events += events
        return events

    def answer(self) -> Answer:
        return assemble(self._events) if self._parser else Answer("".join(self._texts), ())


def message_of(answer: Answer) -> Message:
    return Message(role="assistant", content=answer.content, tool_calls=answer.tool_calls)
