"""Validates and collects the tool definitions of a request, for every dialect."""

from typing import Any

from gateway.api.json_schema import MAX_STRICT_BYTES, check_schema
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.request import Tool

MAX_TOOL_DEPTH = 100
"""Levels of a parameter schema. Real ones have fewer than ten; much deeper ones would overflow the stack later."""


class OfferedTools:
    """Tools collected so far. `add` raises BadRequest or UnsupportedParameter with the tool's path, `path`."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self._strict_bytes = 0

    def add(
        self,
        name: str,
        description: str | None,
        parameters: dict[str, Any] | None,
        *,
        strict: bool | None,
        path: str,
        schema: str = "parameters",
    ) -> None:
        """Add a tool. `schema` is the dialect's name of the field with the parameter schema."""
        if name in self._tools:
            raise BadRequest(f"{path}.name: '{name}' is used twice: give each tool its own name", param=f"{path}.name")
        if parameters and _is_deeper(parameters, MAX_TOOL_DEPTH):
            message = f"{path}.{schema} is nested deeper than {MAX_TOOL_DEPTH} levels: flatten it"
            raise BadRequest(message, param=f"{path}.{schema}")
        if strict:
            self._strict_bytes += check_schema(parameters or {}, param=f"{path}.{schema}")
            if self._strict_bytes > MAX_STRICT_BYTES:
                message = f"the schemas of the strict tools have over {MAX_STRICT_BYTES:,} bytes together: make them smaller"
                raise UnsupportedParameter(message, param=f"{path}.{schema}")
        self._tools[name] = Tool(name=name, description=description or "", parameters=parameters, strict=bool(strict))

    def all(self) -> tuple[Tool, ...]:
        return tuple(self._tools.values())


def _is_deeper(value: dict[str, Any], limit: int) -> bool:
    """Return whether the value has more than `limit` levels. It proceeds by level, so that depth uses no stack."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def refuse_kind(kind: str, allowed: str, *, path: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{path}.type: '{kind[:64]}' is not supported: use {allowed}", param=f"{path}.type")


def missing(name: str, *, path: str) -> BadRequest:
    return BadRequest(f"{path}.{name} is missing: it is required", param=f"{path}.{name}")
