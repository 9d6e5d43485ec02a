"""Parses calls of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from gateway.parsers.call_finder import CallFinder
from gateway.parsers.events import Calls, Event
from gateway.parsers.json_call import JsonCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def hermes_parser(calls: Calls) -> CallFinder:
    return CallFinder(OPEN, lambda: HermesReader(calls))


class HermesReader:
    """Parser of one call, including its closing mark. Without the mark, a call ends with its object."""

    def __init__(self, calls: Calls) -> None:
        self.rest: str | None = None
        self._calls = calls
        self._call = JsonCall(CLOSE)
        self._started = False
        self._after = ""

    @property
    def rejected(self) -> bool:
        return self._call.rejected

    @property
    def text(self) -> str:
        return self._call.text

    def feed(self, text: str) -> list[Event]:
        if self._call.rest is not None:
            self._end(self._after + text)
            return []
        events = self._events(self._call.feed(text))
        if self._call.rest is not None:
            self._end(self._call.rest)
        return events

    def close(self) -> list[Event]:
        if self._call.rest is not None:
            self.rest = self._after
            return []
        return self._events(self._call.finish())

    def _events(self, gained: str) -> list[Event]:
        events: list[Event] = []
        if self._call.name and not self._started:
            self._started = True
            events.append(self._calls.start(self._call.name))
        if gained:
            events.append(self._calls.arguments(gained))
        return events

    def _end(self, after: str) -> None:
        mark = after.lstrip()
        if mark.startswith(CLOSE):
            self.rest = mark[len(CLOSE) :]
        elif CLOSE.startswith(mark):
            self._after = after
        else:
            self.rest = after
