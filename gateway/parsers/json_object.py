"""Follows one JSON object through streamed text. It reports the object's end or the first invalid character."""

import re
from dataclasses import dataclass
from enum import Enum, auto

MAX_DEPTH = 100
_SPACE = " \t\n\r"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR_CHARS = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_START = re.compile(r"-?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]*)?|t(r(ue?)?)?|f(a(l(se?)?)?)?|n(u(ll?)?)?")
_HEX = frozenset("0123456789abcdefABCDEF")


class _Expect(Enum):
    OBJECT = auto()  # the outermost brace
    VALUE = auto()
    VALUE_OR_END = auto()  # just inside [
    KEY = auto()
    KEY_OR_END = auto()  # just inside {
    COLON = auto()
    COMMA_OR_END = auto()


@dataclass(slots=True)
class Member:
    """A member of the outermost object. The key is the text from `key_start` to `key_end`, the value from `start` to `end`."""

    key_start: int
    key_end: int | None = None
    start: int | None = None
    end: int | None = None


class JsonObject:
    """Incremental scanner. `end` is set when the object is complete, `failed_at` when it is invalid.

    Positions count characters from the start of the first piece and do not depend on the split. Text after `end` is ignored.
    """

    def __init__(self) -> None:
        self.end: int | None = None
        self.failed = False
        self.failed_at = 0
        self.members: list[Member] = []
        self._expect = _Expect.OBJECT
        self._open: list[str] = []
        self._num_seen = 0
        self._in_string = False
        self._escape: str | None = None  # characters of an escape after its backslash
        self._scalar = ""
        self._scalar_at = 0

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text) and self.end is None and not self.failed:
            start, expect, depth, in_string = at, self._expect, len(self._open), self._in_string
            if in_string:
                at = self._string(text, at)
            elif self._scalar or self._begins_scalar(text[at]):
                self._scalar_at = self._scalar_at if self._scalar else self._num_seen + at
                at = self._read_scalar(text, at)
                start = min(self._scalar_at - self._num_seen, start)
            else:
                at += 1
                if text[start] in _SPACE:
                    continue
                self._punctuation(text[start])
            if self.failed:
                self.failed_at = self._num_seen + (at - 1 if in_string else start)
            elif self.end is not None:
                self.end = self._num_seen + at
            elif depth == 1:
                self._note_start(expect, self._num_seen + start, in_string)
            if len(self._open) == 1 and not self.failed:
                self._note_end(self._num_seen + at)
        self._num_seen += len(text)

    def _note_start(self, expect: _Expect, place: int, in_string: bool) -> None:
        """Record the start of a token at depth 1, at `place`."""
        if expect in (_Expect.KEY, _Expect.KEY_OR_END) and self._in_string:
            self.members.append(Member(place + 1))
        elif expect is _Expect.VALUE and not in_string and self.members[-1].start is None:
            self.members[-1].start = place

    def _note_end(self, place: int) -> None:
        """Record the end of a key or value at depth 1."""
        if self._in_string or self._scalar or not self.members:
            return
        member = self.members[-1]
        if self._expect is _Expect.COLON and member.key_end is None:
            member.key_end = place - 1
        elif self._expect is _Expect.COMMA_OR_END and member.start is not None and member.end is None:
            member.end = place

    def _string(self, text: str, at: int) -> int:
        if self._escape is not None:
            self._read_escape(text[at])
            return at + 1
        match = _PLAIN.match(text, at)
        at = match.end() if match else at
        if at == len(text):
            return at
        if text[at] == '"':
            self._in_string = False
        elif text[at] == "\\":
            self._escape = ""
        else:
            self.failed = True
        return at + 1

    def _read_escape(self, char: str) -> None:
        escape = (self._escape or "") + char
        if escape[0] != "u":
            self.failed = char not in '"\\/bfnrt'
            self._escape = None
        else:
            self.failed = len(escape) > 1 and char not in _HEX
            self._escape = None if len(escape) == 5 else escape

    def _begins_scalar(self, char: str) -> bool:
        return self._expect in (_Expect.VALUE, _Expect.VALUE_OR_END) and (char in "-tfn" or char in "0123456789")

    def _read_scalar(self, text: str, at: int) -> int:
        """Scan a number or word. It ends at the first character that cannot belong to it."""
        match = _SCALAR_CHARS.match(text, at)
        end = match.end() if match else at
        self._scalar += text[at:end]
        if end < len(text):
            self.failed = _SCALAR.fullmatch(self._scalar) is None
            self._scalar = ""
            self._expect = _Expect.COMMA_OR_END
        else:
            self.failed = _SCALAR_START.fullmatch(self._scalar) is None
        return end

    def _punctuation(self, char: str) -> None:
        match char, self._expect:
            case "{", _Expect.OBJECT | _Expect.VALUE | _Expect.VALUE_OR_END:
                self._enter("}", _Expect.KEY_OR_END)
            case "[", _Expect.VALUE | _Expect.VALUE_OR_END:
                self._enter("]", _Expect.VALUE_OR_END)
            case "}", _Expect.KEY_OR_END | _Expect.COMMA_OR_END:
                self._leave(char)
            case "]", _Expect.VALUE_OR_END | _Expect.COMMA_OR_END:
                self._leave(char)
            case '"', _Expect.KEY | _Expect.KEY_OR_END:
                self._in_string, self._expect = True, _Expect.COLON
            case '"', _Expect.VALUE | _Expect.VALUE_OR_END:
                self._in_string, self._expect = True, _Expect.COMMA_OR_END
            case ":", _Expect.COLON:
                self._expect = _Expect.VALUE
            case ",", _Expect.COMMA_OR_END:
                self._expect = _Expect.KEY if self._open[-1] == "}" else _Expect.VALUE
            case _:
                self.failed = True

    def _enter(self, closing: str, expect: _Expect) -> None:
        self._open.append(closing)
        self._expect = expect
        self.failed = len(self._open) > MAX_DEPTH

    def _leave(self, char: str) -> None:
        self.failed = self._open.pop() != char
        self._expect = _Expect.COMMA_OR_END
        if not (self._open or self.failed):
            self.end = -1  # the caller knows the position
