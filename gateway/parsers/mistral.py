"""Parses calls of Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, or `[TOOL_CALLS]name[ARGS]{...}`."""

from gateway.parsers.call_finder import CallFinder
from gateway.parsers.events import Calls, Event
from gateway.parsers.json_object import JsonObject
from gateway.parsers.llama_json import ObjectsReader

OPEN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
MAX_NAME_CHARS = 200


def mistral_parser(calls: Calls) -> CallFinder:
    return CallFinder(OPEN, lambda: MistralReader(calls))


class MistralReader:
    """Parser of either form; the first character decides."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.text = ""
        self.rest: str | None = None
        self.rejected = False
        self._reader: ObjectsReader | NamedReader | None = None

    def feed(self, text: str) -> list[Event]:
        if self._reader is None:
            self.text += text
            first = self.text.lstrip()
            if not first:
                return []
            is_list = first[0] == "["
            self._reader = ObjectsReader(self._calls, separator=",", end="]") if is_list else NamedReader(self._calls)
            text = first[1:] if is_list else first
        else:
            self.text += text
        return self._state(self._reader.feed(text))

    def close(self) -> list[Event]:
        if self._reader is None:
            self.rejected = True
            return []
        return self._state(self._reader.close())

    def _state(self, events: list[Event]) -> list[Event]:
        assert self._reader
        self.rest, self.rejected = self._reader.rest, self._reader.rejected
        return events


class NamedReader:
    """Parser of `name[ARGS]{...}`, `name[CALL_ID]id[ARGS]{...}` or `name{...}`. Arguments that are not JSON extend to the
    end."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.rest: str | None = None
        self.rejected = False
        self._head: str | None = ""
        self._object = JsonObject()
        self._seen = 0

    def feed(self, text: str) -> list[Event]:
        if self._head is None:
            return self._arguments(text)
        self._head += text
        brace = self._head.find("{")
        head = self._head if brace < 0 else self._head[:brace]
        if len(head) > MAX_NAME_CHARS or "\n" in head.strip():
            self.rejected = True
            return []
        if brace < 0:
            return []
        name = head.partition(ARGUMENTS)[0].partition(ID)[0].strip()
        if not name or " " in name:
            self.rejected = True
            return []
        rest, self._head = self._head[brace:], None
        return [self._calls.start(name), *self._arguments(rest)]

    def close(self) -> list[Event]:
        self.rejected = self._head is not None
        return []

    def _arguments(self, text: str) -> list[Event]:
        self._object.feed(text)
        if self._object.end is None:
            self._seen += len(text)
            return [self._calls.arguments(text)] if text else []
        end = self._object.end - self._seen
        self.rest = text[end:]
        return [self._calls.arguments(text[:end])]
