"""Parses one tool call as a JSON object, `{"name": ..., "arguments": {...}}`, and streams its arguments.

It is a call once its name is known and its arguments begin. Nothing is withdrawn after that: if the rest is not JSON, the
arguments are the model's text up to the mark that closes a call.
"""

from typing import Any

import msgspec

from gateway.parsers.events import may_begin
from gateway.parsers.json_object import JsonObject, Member

_decode = msgspec.json.Decoder(Any).decode
_ARGUMENTS = ("arguments", "parameters")
_IGNORED = ("id", "type")


class JsonCall:
    """One call. `name` is set once it is a call, `rejected` if it is not, `rest` (the text after the object) at its end.

    `close` is the mark that ends a call that is not valid JSON.
    """

    def __init__(self, close: str) -> None:
        self.name = ""
        self.rejected = False
        self.rest: str | None = None
        self.text = ""
        self._close = close
        self._object = JsonObject()
        self._arguments: Member | None = None
        self._sent = 0

    def feed(self, text: str) -> str:
        """Return the addition to the arguments."""
        self.text += text
        self._object.feed(text)
        gained = ""
        if not self.name:
            gained = self._begin()
        if not self.name:
            return ""
        return gained + self._gained()

    def finish(self) -> str:
        """Return the addition to the arguments at the end of the text."""
        if not self.name:
            self.rejected = True
            return ""
        if self.rest is not None or self._arguments is None or self._arguments.end is not None:
            return ""
        rest, self._sent = self.text[self._sent :], len(self.text)
        return rest

    def _begin(self) -> str:
        """Examine the members in order, so that the result does not depend on how the text is split."""
        name = ""
        arguments: Member | None = None
        for member in self._object.members:
            if member.key_end is None or member.start is None:
                break
            key = self.text[member.key_start : member.key_end]
            if key == "name":
                if self.text[member.start] != '"':
                    self.rejected = True
                    return ""
                if member.end is None:
                    break
                name = _string(self.text[member.start : member.end])
                self.rejected = not name
            elif key in _ARGUMENTS:
                arguments = member
                self.rejected = self.text[member.start] != "{"
            else:
                self.rejected = key not in _IGNORED
            if self.rejected:
                return ""
            if name and arguments is not None:
                self.name, self._arguments, self._sent = name, arguments, arguments.start or 0
                return ""
        if self._object.failed:
            self.rejected = True
        elif self._object.end is not None:
            self.name, self.rejected = name, not name
            return "{}" if name else ""
        return ""

    def _gained(self) -> str:
        follower, arguments = self._object, self._arguments
        limit = len(self.text)
        if follower.end is not None:
            self.rest = self.text[follower.end :]
        elif follower.failed:
            limit = self._end_of_broken()
        if arguments is None:
            return ""
        if arguments.end is not None:
            limit = arguments.end
        gained = self.text[self._sent : limit]
        self._sent = max(self._sent, limit)
        return gained

    def _end_of_broken(self) -> int:
        if not self._close:
            return len(self.text)
        at = self.text.find(self._close, self._object.failed_at)
        if at < 0:
            return max(self._sent, len(self.text) - may_begin(self._close, self.text))
        self.rest = self.text[at:]
        return at


def _string(text: str) -> str:
    try:
        value = _decode(text)
    except msgspec.DecodeError:
        return ""
    return value if isinstance(value, str) else ""
