"""Structural features of a conversation: turns, tool loop and offered tools, as names to hash and as numbers."""

import math
from collections.abc import Sequence

from gateway.request import Message, Tool


def structure_names(messages: Sequence[Message], tools: Sequence[Tool]) -> list[bytes]:
    roles = [message.role for message in messages]
    results = b"results=%d" % _capped(_num_results(roles))
    offered = b"tools=%d" % _capped(len(tools))
    return [
        b"last=" + (roles[-1].encode() if roles else b"none"),
        b"turns=%d" % _capped(roles.count("user")),
        results,
        offered,
        offered + results,
        b"properties=%d" % _capped(sum(map(_num_properties, tools))),
    ]


def structure_scalars(messages: Sequence[Message], tools: Sequence[Tool], total_chars: int) -> list[float]:
    """Return logarithms of counts. `total_chars` excludes the system text."""
    roles = [message.role for message in messages]
    calls = [(call.name, call.arguments) for message in messages for call in message.tool_calls]
    log = math.log1p
    return [
        log(total_chars) / 4,
        log(roles.count("user")),
        log(_num_results(roles)),
        log(len(calls)),
        log(len(calls) - len(set(calls))),
        log(len(messages[-1].content) if roles and roles[-1] == "tool" else 0) / 4,
        log(len(tools)),
        log(sum(map(_num_properties, tools))) / 2,
    ]


def _num_results(roles: Sequence[str]) -> int:
    """Return the number of tool results since the last user message."""
    count = 0
    for role in reversed(roles):
        if role == "user":
            break
        count += role == "tool"
    return count


def _num_properties(tool: Tool) -> int:
    """Return the number of properties of a tool's schema. 0 if it is no schema: the model's template decides what is valid."""
    properties = (tool.parameters or {}).get("properties")
    return len(properties) if isinstance(properties, dict) else 0


def _capped(number: int) -> int:
    """Return a bucket: exact up to 12, then two buckets per octave."""
    return number if number <= 12 else 100 + round(2 * math.log2(number))
