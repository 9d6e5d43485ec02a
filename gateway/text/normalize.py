"""Removes text that changes from turn to turn without meaning, so that consecutive prompts share a prefix.

Lines of system messages that match a pattern are dropped and tools are sorted by name; nothing else changes. The request's
`normalized` lists the changes.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from msgspec import structs

from gateway.policy.schema import Text
from gateway.request import Message, Request

_WILDCARD = re.compile(r"[*?\[]")


def normalized(request: Request, text: Text) -> Request:
    """Return the normalized request, or the same one if nothing changes. A raw-text request is never changed."""
    if request.text is not None:
        return request
    done: list[str] = []
    messages = _without_lines(request.messages, text.drop_lines, done)
    tools, calls = request.tools, request.calls
    if text.sort_tools:
        tools = tuple(sorted(tools, key=lambda tool: tool.name))
        if tools != request.tools:
            done.append("tools: sorted by name")
        if calls is not None:
            calls = structs.replace(calls, tools=tuple(sorted(calls.tools, key=lambda tool: tool.name)))
    if not done:
        return request
    return structs.replace(request, messages=messages, tools=tools, calls=calls, normalized=tuple(done))


def _without_lines(messages: tuple[Message, ...], patterns: Sequence[str], done: list[str]) -> tuple[Message, ...]:
    kept = []
    for number, message in enumerate(messages):
        if message.role == "system" and _may_match(message.content, patterns):
            lines = message.content.split("\n")
            rest = [line for line in lines if not any(fnmatchcase(line, pattern) for pattern in patterns)]
            if dropped := len(lines) - len(rest):
                done.append(f"message {number} (system): {dropped} line{'s' * (dropped > 1)} dropped")
                if not rest and len(messages) > 1:
                    continue
                message = structs.replace(message, content="\n".join(rest))
        kept.append(message)
    return tuple(kept)


def _may_match(content: str, patterns: Sequence[str]) -> bool:
    """Return whether the patterns' literal beginnings occur: a fast check, as system prompts are long and few have such a
    line."""
    return any(_WILDCARD.split(pattern, maxsplit=1)[0] in content for pattern in patterns)
