"""Determines from `tool_choice` and related fields which tools the model sees and which calls it may write."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import structs

from gateway.api.json_schema import check_schema
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.request import CallRule, Tool

PARAM = "tool_choice"


class Offered(NamedTuple):
    """Tools that the model sees, and the rule for its calls. `calls` is None if output is unconstrained."""

    tools: tuple[Tool, ...]
    calls: CallRule | None


def rule_for(tools: tuple[Tool, ...], choice: str | dict[str, Any] | None, *, parallel: bool) -> Offered:
    """Return the tools and call rule. `choice` is in the format of chat completions. Raises BadRequest with its path."""
    match choice:
        case None | "auto":
            return Offered(tools, _free(tools, tools, parallel))
        case "none":
            return Offered((), None)
        case "required":
            return Offered(tools, _forced(tools, parallel))
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return Offered(tools, _forced(_named(tools, [name]), parallel))
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*allowed]}}:
            return _allowed(tools, mode, allowed, parallel)
        case {"type": "allowed_tools", "mode": mode, "tools": [*allowed]}:
            return _allowed(tools, mode, allowed, parallel)
        case {"type": str(kind)} if kind not in ("function", "allowed_tools"):
            raise UnsupportedParameter(f"{PARAM}.type: '{kind[:64]}' is not supported: use function", param=f"{PARAM}.type")
        case _:
            raise BadRequest(
                'tool_choice must be auto, none, required or {"type": "function", "function": {"name": ...}}', param=PARAM
            )


def _allowed(tools: tuple[Tool, ...], mode: Any, allowed: Sequence[Any], parallel: bool) -> Offered:
    names = [_name(entry) for entry in allowed]
    if mode == "required":
        return Offered(tools, _forced(_named(tools, names), parallel))
    if mode != "auto":
        raise BadRequest(f"{PARAM}.mode must be auto or required", param=f"{PARAM}.mode")
    return Offered(tools, _free(tools, _named(tools, names), parallel))


def _name(entry: Any) -> str:
    match entry:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            raise BadRequest(f"{PARAM}.tools: each entry needs the name of a function", param=f"{PARAM}.tools")


def _free(shown: Sequence[Tool], tools: tuple[Tool, ...], parallel: bool) -> CallRule | None:
    """Return the rule for free text with optional calls.

    Calls are constrained if a tool is strict, only some tools are allowed, or only one call at a time. Otherwise None.
    """
    if any(tool.strict for tool in tools):
        return CallRule(param="tools", tools=tools, parallel=parallel)
    if tools and len(tools) < len(shown):
        return CallRule(param=PARAM, tools=tools, parallel=parallel)
    if tools and not parallel:
        return CallRule(param="parallel_tool_calls", tools=tools, parallel=False)
    return None


def _forced(tools: tuple[Tool, ...], parallel: bool) -> CallRule:
    """Return the rule for at least one call. Arguments follow the schema if it is supported, even if the tool is not strict.

    Raises UnsatisfiableSchema for a tool that cannot be called.
    """
    if not tools:
        raise BadRequest("tool_choice asks for a call, but there are no tools: send tools", param=PARAM)
    return CallRule(param=PARAM, tools=tuple(map(_held, tools)), required=True, parallel=parallel)


def _held(tool: Tool) -> Tool:
    if tool.strict or tool.parameters is None:
        return tool
    try:
        check_schema(tool.parameters, param=f"tools[{tool.name!r}].parameters")
    except UnsupportedParameter:
        return tool
    return structs.replace(tool, strict=True)


def _named(tools: tuple[Tool, ...], names: Sequence[str]) -> tuple[Tool, ...]:
    known = {tool.name: tool for tool in tools}
    for name in names:
        if name not in known:
            raise BadRequest(f"{PARAM}: there is no tool {name[:128]!r} among tools", param=PARAM)
    return tuple(known[name] for name in names)
