"""Finds tool calls in what a model writes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen).

However the text is cut into pieces, the events join to the same. A call comes out whole, once it is known to be one, so that
no client ever sees half a call; what turns out to be none comes out as the text it is. Nothing else is held back but what
may still begin a mark, and white space that may belong to a call.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from gateway.api.json_object import JsonObject
from gateway.request import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class TextDelta(msgspec.Struct, frozen=True):
    text: str


class CallStart(msgspec.Struct, frozen=True):
    """`index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of a call's arguments, as JSON text."""

    index: int
    text: str


Event = TextDelta | CallStart | CallArguments


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


_decode_call = msgspec.json.Decoder(_Call).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class HermesParser:
    """One answer's parser. White space around calls is theirs: text that holds nothing else there is dropped."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._num_calls = 0
        self._held = ""  # not yet told apart: a beginning of a mark, or a call from its mark on
        self._object: JsonObject | None = None  # follows the call whose mark begins `_held`
        self._space = ""  # white space that is the call's if one comes next
        self._beside_call = True  # nothing but white space since the start or the last call

    @property
    def num_calls(self) -> int:
        return self._num_calls

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        self._take(text, events)
        return events

    def close(self) -> list[Event]:
        """The answer is over: what was held back is text."""
        events: list[Event] = []
        while self._object is not None:
            self._take(self._reject(events), events)
        self._write(self._held, events)
        self._held = ""
        if self._space and self._num_calls == 0:
            _append_text(events, self._space)
        self._space = ""
        return events

    def _take(self, text: str, events: list[Event]) -> None:
        """Each turn of the loop takes the text up to the next mark, or a call, or all that there is."""
        more: str | None = text
        while more is not None:
            more = self._take_text(more, events) if self._object is None else self._take_call(more, events)

    def _take_text(self, text: str, events: list[Event]) -> str | None:
        text = self._held + text
        self._held = ""
        start = text.find(OPEN)
        if start < 0:
            kept = _num_that_may_begin(OPEN, text)
            self._write(text[: len(text) - kept], events)
            self._held = text[len(text) - kept :]
            return None
        self._write(text[:start], events)
        self._object = JsonObject()
        self._held = OPEN
        return text[start + len(OPEN) :]

    def _take_call(self, text: str, events: list[Event]) -> str | None:
        assert self._object is not None
        self._object.feed(text)
        self._held += text
        if self._object.failed:
            return self._reject(events)
        if self._object.end is None:
            return None
        end = len(OPEN) + self._object.end
        after = self._held[end:].lstrip()
        if len(after) < len(CLOSE) and CLOSE.startswith(after):
            return None
        call = _read_call(self._held[len(OPEN) : end]) if after.startswith(CLOSE) else None
        if call is None:
            return self._reject(events)
        self._accept(call, events)
        return after[len(CLOSE) :]

    def _accept(self, call: _Call, events: list[Event]) -> None:
        index = self._num_calls
        events.append(CallStart(index, self._new_id(), call.name))
        events.append(CallArguments(index, bytes(call.arguments).decode()))
        self._num_calls += 1
        self._object, self._held, self._space, self._beside_call = None, "", "", True

    def _reject(self, events: list[Event]) -> str:
        """The mark was only text. What followed it is looked at again: a call may begin inside. Returns that."""
        rest = self._held[len(OPEN) :]
        self._object, self._held = None, ""
        self._write(OPEN, events)
        return rest

    def _write(self, text: str, events: list[Event]) -> None:
        if self._beside_call:
            text = self._space + text
            self._space = ""
            if not text.strip():
                self._space = text
                return
            self._beside_call = False
        _append_text(events, text)


def _append_text(events: list[Event], text: str) -> None:
    if not text:
        return
    last = events[-1] if events else None
    if isinstance(last, TextDelta):
        events[-1] = TextDelta(last.text + text)
    else:
        events.append(TextDelta(text))


def _num_that_may_begin(mark: str, text: str) -> int:
    """How many last characters of a text may be the beginning of a mark."""
    start = text.rfind("<", max(0, len(text) - len(mark) + 1))
    return len(text) - start if start >= 0 and mark.startswith(text[start:]) else 0


def _read_call(text: str) -> _Call | None:
    try:
        call = _decode_call(text)
        _decode_object(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        return None
    return call if call.name else None


class Answer(NamedTuple):
    content: str
    tool_calls: tuple[ToolCall, ...]


def assemble(events: Iterable[Event]) -> Answer:
    """The whole answer out of its events."""
    content: list[str] = []
    starts: list[CallStart] = []
    arguments: list[str] = []
    for event in events:
        match event:
            case TextDelta(text):
                content.append(text)
            case CallStart():
                starts.append(event)
                arguments.append("")
            case CallArguments(index, text):
                arguments[index] += text
    calls = (ToolCall(id=s.id, name=s.name, arguments=a) for s, a in zip(starts, arguments, strict=True))
    return Answer("".join(content), tuple(calls))
