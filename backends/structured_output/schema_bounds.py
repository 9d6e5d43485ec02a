"""Bounds that a JSON Schema leaves open and every reader has: without them a small model may write digits for ever.

Integers are those of 64 bits, numbers have as many digits as a double can hold, formats are those of
formats.py, and text has no halves of a surrogate pair.
"""

from typing import Any

from backends.structured_output.formats import PATTERNS
from backends.structured_output.json_pattern import check_pattern

INT64 = 2**63 - 1

_BY_NAME = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_ANY_ESCAPE = '("u" [A-Fa-f0-9] [A-Fa-f0-9] [A-Fa-f0-9] [A-Fa-f0-9])'
_ESCAPE = '("u" ([A-CEFa-cef0-9] [A-Fa-f0-9] | [Dd] [0-7]) [A-Fa-f0-9] [A-Fa-f0-9])'
_ANY_CHARACTER = r"([^\"\\\r\n])"
"""Of a string with a length: control characters as well, which are no JSON."""
_CHARACTER = r"([^\0-\x1f\"\\])"
_LOWER, _UPPER = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}


def bounded(schema: Any) -> Any:
    """A copy with the bounds in it that keywords can say. Raises as check_pattern does."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    for name in _BY_NAME:
        if isinstance(inner := copy.get(name), dict):
            copy[name] = {key: bounded(value) for key, value in inner.items()}
    for name in _LISTS:
        if isinstance(inner := copy.get(name), list):
            copy[name] = [bounded(value) for value in inner]
    for name in _SINGLE:
        if name in copy:
            copy[name] = bounded(copy[name])
    if isinstance(pattern := copy.get("pattern"), str):
        check_pattern(pattern)
    kind = copy.get("type")
    if kind == "string" and copy.get("format") in PATTERNS:
        copy["pattern"] = PATTERNS[copy.pop("format")]
    elif not copy.keys() & {"enum", "const"} and (kind == "integer" or (kind == "number" and copy.keys() & (_LOWER | _UPPER))):
        _bound(copy)
    return copy


def _bound(schema: dict[str, Any]) -> None:
    if not schema.keys() & _LOWER:
        schema["minimum"] = -INT64
    if not schema.keys() & _UPPER:
        schema["maximum"] = INT64


def bounded_rules(ebnf: str) -> str:
    """The same for numbers of any size and for text, in the rules as xgrammar 0.2.8 writes them."""
    lines = ebnf.splitlines()
    return "\n".join(_bounded_rule(line) for line in lines)


def _bounded_rule(line: str) -> str:
    name = line.partition(" ::= ")[0]
    line = line.replace(_ANY_ESCAPE, _ESCAPE).replace(_ANY_CHARACTER, _CHARACTER)
    if not name.startswith(("basic_integer", "basic_number")):
        return line
    digits = "{1, 3}" if "[eE]" in line else "{1, 17}"
    return line.replace("[0-9]*", "[0-9]{0, 17}").replace("{1, -1}", digits)
