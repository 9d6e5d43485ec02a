"""Decodes a JSON body into a struct. Every error becomes a BadRequest with the path of the field at fault."""

import difflib
import json
import re
from typing import Generic, TypeVar

import msgspec

from gateway.errors import BadRequest, UnsupportedParameter
from gateway.policy.mismatch import Mismatch, find_mismatch, joined

T = TypeVar("T", bound=msgspec.Struct)

_MAX_QUOTED_CHARS = 300
"""Characters of client input that an error message quotes."""
_MAX_PLACED_CHARS = 1_000_000
"""Longest text whose error is located: finding the place in a longer one holds up the event loop."""
MAX_PARTS = 300_000
"""Objects, lists and members of a body, counted by their punctuation, also in its text. The decoder, which cannot be
interrupted, makes up to five in a microsecond. A text with more punctuation is longer than any model's context."""
_outer = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CONTENT_PART = re.compile(r"\Amessages\[\d+\]\.content\[\d+\]\.type\Z")
_TOO_DEEP = "the body is nested too deeply: flatten it"


class BodyDecoder(Generic[T]):
    """Decoder of one struct type, made once and shared. Raises nothing but BadRequest."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind).decode
        self._fields = tuple(kind.__struct_fields__)
        self._quoted = tuple((name, f'"{name}"'.encode()) for name in self._fields)

    def decode(self, body: bytes) -> T:
        if len(body) > MAX_PARTS and sum(map(body.count, (b"{", b"[", b":"))) > MAX_PARTS:
            raise BadRequest(f"the body has over {MAX_PARTS:,} brackets and colons: send fewer objects, lists and fields")
        try:
            decoded = self._decode(body)
        except msgspec.ValidationError as error:
            raise self._wrong_value(body) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_not_json(body)) from error
        except RecursionError as error:
            raise BadRequest(_TOO_DEEP) from error
        self._refuse_duplicates(body, decoded)
        return decoded

    def _refuse_duplicates(self, body: bytes, decoded: T) -> None:
        """Raise BadRequest if the body has a field twice: the decoder silently takes the last one.

        Counting quoted names is fast. Only a name that occurs more than once is examined further.
        """
        suspected = [
            (name, quoted) for name, quoted in self._quoted if getattr(decoded, name) is not None and body.count(quoted) > 1
        ]
        if not suspected and b"\\u00" not in body:
            return
        values = _outer.decode(body).values()
        if body.count(b"\\u00") > sum(bytes(value).count(b"\\u00") for value in values):
            raise BadRequest("write field names without escapes, each once")
        for name, quoted in suspected:
            # An occurrence outside the kept values is either a duplicate's name or lies in the value of an overwritten
            # duplicate.
            if body.count(quoted) > 1 + sum(bytes(value).count(quoted) for value in values):
                raise BadRequest(f"`{name}` occurs twice: send it once", param=name)

    def _wrong_value(self, body: bytes) -> BadRequest:
        try:
            mismatch = find_mismatch(body, self._kind)
        except RecursionError:
            return BadRequest(_TOO_DEEP)
        except (msgspec.DecodeError, UnicodeDecodeError):  # the wrong value stands before the end of the JSON
            return BadRequest(_not_json(body))
        if mismatch is None or (mismatch.problem and not mismatch.path):
            return BadRequest("the body must be a JSON object")
        near = () if mismatch.path else difflib.get_close_matches((mismatch.unknown or "")[:64], self._fields, n=1)
        return refusal(mismatch, f"did you mean `{near[0]}`?" if near else "remove it")


def refusal(mismatch: Mismatch, cure: str = "remove it") -> BadRequest:
    """Return the error of a mismatch. `cure` says what to do about an unknown field."""
    path = mismatch.path[:_MAX_QUOTED_CHARS]
    if mismatch.unknown is not None:
        param = joined(path, mismatch.unknown[:_MAX_QUOTED_CHARS])
        return BadRequest(f"unknown field `{param}`: {cure}", param=param)
    if mismatch.missing is not None:
        param = joined(path, mismatch.missing)
        return BadRequest(f"{param} is missing: it is required", param=param)
    if mismatch.tag is not None and _CONTENT_PART.search(path):
        message = f"{path}: parts of type '{mismatch.tag}' are not supported: send text parts"
        return UnsupportedParameter(message, param=path)
    return BadRequest(f"{path}: {mismatch.problem[:_MAX_QUOTED_CHARS]}", param=path)


def _not_json(body: bytes) -> str:
    if not body.strip():
        return "the body is empty: send a JSON object"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "the body is not UTF-8: encode it as UTF-8"
    return f"the body is not valid JSON{_place(text)}"


def _place(text: str) -> str:
    """Return the place at which the text stops being JSON.

    The standard library's parser is looser: it accepts NaN and half of a surrogate pair.
    """
    if len(text) > _MAX_PLACED_CHARS:
        return ""
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        return f": something is wrong at line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):
        return ""
    return ": it has NaN, Infinity or half of a surrogate pair"
