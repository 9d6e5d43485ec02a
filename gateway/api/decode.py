"""Decodes a JSON body into a struct. Whatever is wrong with it becomes a BadRequest that names the place."""

import difflib
import json
import re
from typing import Generic, TypeVar

import msgspec

from gateway.errors import BadRequest, UnsupportedParameter
from gateway.policy.mismatch import Mismatch, find_mismatch, joined

T = TypeVar("T", bound=msgspec.Struct)

_MAX_QUOTED_CHARS = 300
"""Of what a client sent, no more comes back to it in a message."""
_MAX_PLACED_CHARS = 1_000_000
"""The place of a mistake in a longer text would hold up the event loop for longer than reading it has."""
_outer = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CONTENT_PART = re.compile(r"\Amessages\[\d+\]\.content\[\d+\]\.type\Z")
_TOO_DEEP = "the body is nested too deep: flatten it"


class BodyDecoder(Generic[T]):
    """Made once for a struct type and shared; raises nothing but BadRequest."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind).decode
        self._fields = tuple(kind.__struct_fields__)
        self._quoted = tuple((name, f'"{name}"'.encode()) for name in self._fields)

    def decode(self, body: bytes) -> T:
        try:
            given = self._decode(body)
        except msgspec.ValidationError as error:
            raise self._wrong_value(body) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_not_json(body)) from error
        except RecursionError as error:
            raise BadRequest(_TOO_DEEP) from error
        self._refuse_duplicates(body, given)
        return given

    def _refuse_duplicates(self, body: bytes, given: T) -> None:
        """A field given twice: the decoder takes the last one silently. Searching is fast; only a suspicion is looked into."""
        suspected = [
            (name, quoted) for name, quoted in self._quoted if getattr(given, name) is not None and body.count(quoted) > 1
        ]
        if not suspected and b"\\u00" not in body:
            return
        values = _outer.decode(body).values()
        if body.count(b"\\u00") > sum(bytes(value).count(b"\\u00") for value in values):
            raise BadRequest("the names of fields must be written as they are, without escapes, each once")
        for name, quoted in suspected:
            # What the values that were kept lack stood in front of one, or in a value that was not kept.
            if body.count(quoted) > 1 + sum(bytes(value).count(quoted) for value in values):
                raise BadRequest(f"`{name}` is given twice: send it once", param=name)

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
    """`cure` is for a field that is not known."""
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
        return "the body is not UTF-8: encode it so"
    return f"the body is not valid JSON{_place(text)}"


def _place(text: str) -> str:
    """Where it stops being JSON, by the standard library's reader, which is looser: it takes NaN and half a surrogate pair."""
    if len(text) > _MAX_PLACED_CHARS:
        return ""
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        return f": something is wrong at line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):
        return ""
    return ": it has NaN, Infinity or half of a surrogate pair"
