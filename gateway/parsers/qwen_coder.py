"""Parses calls of Qwen3-Coder and casts parameters to the types of the tool's schema:

<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.parsers.call_finder import CallFinder
from gateway.parsers.events import Calls, Event
from gateway.request import Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\s]{1,200})>")
_FUNCTION_BEGINNING = re.compile(r"\s*(<(f(u(n(c(t(i(o(n(=[^>\s]{0,200})?)?)?)?)?)?)?)?)?)?")
_PARAMETER = "<parameter="
_END_PARAMETER, _END_FUNCTION = "</parameter>", "</function>"


def qwen_coder_parser(calls: Calls, tools: Sequence[Tool]) -> CallFinder:
    types = {tool.name: (tool.parameters or {}).get("properties") for tool in tools}
    return CallFinder(OPEN, lambda: QwenCoderReader(calls, types))


class QwenCoderReader:
    """Parser of one call. It emits arguments parameter by parameter."""

    def __init__(self, calls: Calls, properties: Mapping[str, Any]) -> None:
        self._calls, self._properties = calls, properties
        self.text = ""
        self.rest: str | None = None
        self.rejected = False
        self._name = ""
        self._left = ""  # unparsed text of a confirmed call
        self._count = 0
        self._closed = False

    def feed(self, text: str) -> list[Event]:
        if self._name:
            self._left += text
            return self._read()
        self.text += text
        if match := _FUNCTION.match(self.text):
            self._name, self._left = match[1], self.text[match.end() :]
            return [self._calls.start(self._name), *self._read()]
        self.rejected = _FUNCTION_BEGINNING.fullmatch(self.text) is None
        return []

    def close(self) -> list[Event]:
        """End the call. A truncated call has its complete parameters."""
        if not self._name:
            self.rejected = True
            return []
        if self._closed:
            self.rest = self._left
            return []
        return self._end()

    def _read(self) -> list[Event]:
        events: list[Event] = []
        while not self._closed:
            left = self._left.lstrip()
            if left.startswith(_PARAMETER):
                end = left.find(_END_PARAMETER)
                if end < 0:
                    return events
                key, _, value = left[len(_PARAMETER) : end].partition(">")
                self._left = left[end + len(_END_PARAMETER) :]
                events.append(self._argument(key.strip(), value))
            elif _PARAMETER.startswith(left) or (_END_FUNCTION.startswith(left) and left != _END_FUNCTION):
                return events
            else:
                self._left = left.removeprefix(_END_FUNCTION)
                events += self._end()
        mark = self._left.lstrip()
        if mark.startswith(CLOSE):
            self.rest = mark[len(CLOSE) :]
        elif not CLOSE.startswith(mark):
            self.rest = self._left
        return events

    def _argument(self, key: str, value: str) -> Event:
        value = value.removeprefix("\n").removesuffix("\n")
        properties = self._properties.get(self._name)
        schema = properties.get(key) if isinstance(properties, dict) else None
        pair = f"{json.dumps(key, ensure_ascii=False)}: {cast(value, schema)}"
        self._count += 1
        return self._calls.arguments((", " if self._count > 1 else "{") + pair)

    def _end(self) -> list[Event]:
        self._closed = True
        return [self._calls.arguments("}" if self._count else "{}")]


def cast(value: str, schema: Any) -> str:
    """Return a parameter's text as JSON of a type that its schema allows, or as a string if no type fits."""
    types = _types(schema)
    if types and "string" not in types:
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = _word(value, types)
        if parsed is not _NO_VALUE and _is(parsed, types):
            return json.dumps(parsed, ensure_ascii=False)
    elif types and value == "null" and "null" in types:
        return "null"
    return json.dumps(value, ensure_ascii=False)


_NO_VALUE = object()
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def _word(value: str, types: frozenset[str]) -> Any:
    """Return the value of a Python literal."""
    return _WORDS.get(value.strip().lower(), _NO_VALUE)


def _is(value: Any, types: frozenset[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, _KINDS.get(kind, ())) for kind in types)


def _types(schema: Any) -> frozenset[str]:
    """Return the names of the types that a schema allows; empty if it does not specify any."""
    if not isinstance(schema, dict):
        return frozenset()
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list):
        return frozenset(name for name in kind if isinstance(name, str))
    options = schema.get("anyOf") or schema.get("oneOf")
    return frozenset().union(*map(_types, options)) if isinstance(options, list) else frozenset()
