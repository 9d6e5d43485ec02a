"""Parses calls of Llama 3: the answer is `{"name": ..., "parameters": {...}}`, several separated by `;`, optionally after
`<|python_tag|>`."""

from gateway.parsers.call_finder import CallFinder
from gateway.parsers.events import Calls, Event
from gateway.parsers.json_call import JsonCall

OPEN = "<|python_tag|>"


def llama_parser(calls: Calls) -> CallFinder:
    return CallFinder(OPEN, lambda: ObjectsReader(calls, separator=";"), bare="{")


class ObjectsReader:
    """Parser of consecutive JSON calls with a separator, up to `end` if it is set."""

    def __init__(self, calls: Calls, *, separator: str, end: str = "") -> None:
        self.rest: str | None = None
        self.rejected = False
        self.text = ""
        self._calls, self._separator, self._end = calls, separator, end
        self._call: JsonCall | None = JsonCall("")
        self._between = ""
        self._count = 0
        self._started = False

    def feed(self, text: str) -> list[Event]:
        if not self._count:
            self.text += text
        events: list[Event] = []
        more: str | None = text
        while more is not None and self.rest is None and not self.rejected:
            more = self._next(more) if self._call is None else self._read(self._call, more, events)
        return events

    def close(self) -> list[Event]:
        events: list[Event] = []
        if self._call is None:
            self.rest = self._between
        else:
            self._gain(self._call, self._call.finish(), events)
            self._reject_if(self._call)
        return events

    def _read(self, call: JsonCall, text: str, events: list[Event]) -> str | None:
        self._gain(call, call.feed(text), events)
        if self._reject_if(call) or call.rest is None:
            return None
        self._call, self._started, self._between = None, False, ""
        return call.rest

    def _gain(self, call: JsonCall, gained: str, events: list[Event]) -> None:
        if call.name and not self._started:
            self._started = True
            self._count += 1
            events.append(self._calls.start(call.name))
        if gained:
            events.append(self._calls.arguments(gained))

    def _reject_if(self, call: JsonCall) -> bool:
        """Handle an object that is not a call: the first makes everything text, a later one is text after the calls."""
        if call.rejected and self._count:
            self.rest = self._between + call.text
        elif call.rejected:
            self.rejected = True
        return call.rejected

    def _next(self, text: str) -> str | None:
        """Handle text between two calls: white space, a separator, or the end."""
        text = self._between + text
        self._between = ""
        rest = text.lstrip()
        if rest.startswith(self._separator):
            rest = rest[len(self._separator) :].lstrip()
        if rest.startswith("{"):
            self._between = text[: len(text) - len(rest)]
            self._call = JsonCall("")
            return rest
        if self._end and rest.startswith(self._end):
            self.rest = rest[len(self._end) :]
        elif rest:
            self.rest = text
        else:
            self._between = text
        return None
