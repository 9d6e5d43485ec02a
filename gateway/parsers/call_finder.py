"""Finds calls in streamed text by their opening mark. All else is text, delayed only while it may begin a mark.

White space around calls belongs to them: text with nothing else there is dropped.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.parsers.events import Event, TextDelta, may_begin


class CallReader(Protocol):
    """Parser of the text after an opening mark. `rest` is set when the call is complete, `rejected` when `text` is not a
    call."""

    @property
    def rest(self) -> str | None: ...

    @property
    def rejected(self) -> bool: ...

    @property
    def text(self) -> str: ...

    def feed(self, text: str) -> list[Event]: ...

    def close(self) -> list[Event]: ...


class CallFinder:
    """Splits streamed text into text and calls. `bare` is a first character with which an answer is a call without any mark."""

    def __init__(self, opening: str, new_reader: Callable[[], CallReader], *, bare: str = "") -> None:
        self._opening, self._new_reader, self._bare = opening, new_reader, bare
        self._reader: CallReader | None = None
        self._opened_by = ""
        self._held = ""  # may begin a mark
        self._space = ""  # white space that is dropped if a call follows
        self._beside_call = True  # only white space since the start or the last call
        self._found = False

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        self._take(text, events)
        return events

    def close(self) -> list[Event]:
        events: list[Event] = []
        while (reader := self._reader) is not None:
            events += reader.close()
            self._reader = None
            if reader.rejected:
                self._write(self._opened_by, events)
                self._take(reader.text, events)
            else:
                self._found, self._beside_call, self._space = True, True, ""
                self._take(reader.rest or "", events)
        self._write(self._held, events)
        self._held = ""
        if self._space and not self._found:
            events.append(TextDelta(self._space))
        self._space = ""
        return events

    def _take(self, text: str, events: list[Event]) -> None:
        more: str | None = text
        while more is not None:
            more = self._take_text(more, events) if self._reader is None else self._take_call(self._reader, more, events)

    def _take_text(self, text: str, events: list[Event]) -> str | None:
        text = self._held + text
        self._held = ""
        if self._bare and (first := text.lstrip()):
            bare, self._bare = self._bare, ""
            if first.startswith(bare):
                return self._open("", first)
        start = text.find(self._opening)
        if start < 0:
            kept = may_begin(self._opening, text)
            self._write(text[: len(text) - kept], events)
            self._held = text[len(text) - kept :]
            return None
        self._write(text[:start], events)
        return self._open(self._opening, text[start + len(self._opening) :])

    def _open(self, opening: str, text: str) -> str:
        self._reader, self._opened_by = self._new_reader(), opening
        return text

    def _take_call(self, reader: CallReader, text: str, events: list[Event]) -> str | None:
        events += reader.feed(text)
        if reader.rejected:
            self._reader = None
            self._write(self._opened_by, events)
            return reader.text
        if reader.rest is None:
            return None
        self._reader = None
        self._found, self._beside_call, self._space = True, True, ""
        return reader.rest

    def _write(self, text: str, events: list[Event]) -> None:
        if self._beside_call:
            text = self._space + text
            self._space = ""
            if not text.strip():
                self._space = text
                return
            self._beside_call = False
        if not text:
            return
        last = events[-1] if events else None
        if isinstance(last, TextDelta):
            events[-1] = TextDelta(last.text + text)
        else:
            events.append(TextDelta(text))
