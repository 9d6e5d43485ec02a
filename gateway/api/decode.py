"""Decodes a JSON body into a struct. Every error becomes a BadRequest with the path of the field at fault."""

import difflib
import re
from typing import Generic, TypeVar

import msgspec

from gateway.errors import BadRequest, UnsupportedParameter

T = TypeVar("T", bound=msgspec.Struct)

_MAX_QUOTED_CHARS = 300
"""Characters of client input that an error message quotes."""
_outer = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PLACE = re.compile(r"(?P<problem>.*) - at `\$\.?(?P<path>[^`]*)`\Z", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`\Z", re.DOTALL)
_CONTENT_PART = re.compile(r"messages\[\d+\]\.content\[\d+\]\.type\Z")
_INVALID = re.compile(r"Invalid value '?(?P<value>.*?)'?\Z", re.DOTALL)


class BodyDecoder(Generic[T]):
    """Decoder of one struct type, made once and shared. Raises nothing but BadRequest."""

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode
        self._fields = tuple(kind.__struct_fields__)
        self._quoted = tuple((name, f'"{name}"'.encode()) for name in self._fields)

    def decode(self, body: bytes) -> T:
        try:
            decoded = self._decode(body)
        except msgspec.ValidationError as error:
            raise self._wrong_value(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_not_json(body, error)) from error
        except RecursionError as error:
            raise BadRequest("the body is nested too deeply: flatten it") from error
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

    def _wrong_value(self, text: str) -> BadRequest:
        place = _PLACE.match(text)
        problem, path = (place["problem"], place["path"]) if place else (text, "")
        if unknown := _UNKNOWN.match(problem):
            return self._unknown_field(unknown["name"][:_MAX_QUOTED_CHARS], path)
        if missing := _MISSING.match(problem):
            param = _join(path, missing["name"])
            return BadRequest(f"{param} is missing: it is required", param=param)
        if not path:
            return BadRequest("the body must be a JSON object")
        problem = problem[:_MAX_QUOTED_CHARS]
        if _CONTENT_PART.match(path):
            kind = _INVALID.sub(r"\g<value>", problem)
            return UnsupportedParameter(f"{path}: parts of type '{kind}' are not supported: send text parts", param=path)
        if path.endswith(".role"):
            problem += ": use system, developer, user, assistant or tool"
        return BadRequest(f"{path}: {problem[:1].lower()}{problem[1:]}", param=path)

    def _unknown_field(self, name: str, path: str) -> BadRequest:
        param = _join(path, name)
        near = () if path else difflib.get_close_matches(name[:64], self._fields, n=1)
        return BadRequest(f"unknown field `{param}`: " + (f"did you mean `{near[0]}`?" if near else "remove it"), param=param)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _not_json(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the body is empty: send a JSON object"
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8: encode it as UTF-8"
    return f"the body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}"
