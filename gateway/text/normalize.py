"""Takes out of a request what changes from turn to turn and says nothing, so that a prompt begins as the one before it did.

Lines of system messages that match a pattern are dropped, and tools are put in the order of their names; nothing else changes.
What was done is said in the request's `normalized`.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from msgspec import structs

from gateway.policy.schema import Text
from gateway.request import Message, Request

_WILDCARD = re.compile(r"[*?\[]")


def normalized(request: Request, text: Text) -> Request:
    """The same request where nothing is to do; a text that goes to the model as it stands is left alone."""
    if request.text is not None:
        return request
    done: list[str] = []
    messages = _without_lines(request.messages, text.drop_lines, done)
    tools, calls = request.tools, request.calls
    if text.sort_tools:
        tools = tuple(sorted(tools, key=lambda tool: tool.name))
        if tools != request.tools:
            done.append("tools: in order of their names")
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
    """A search for what patterns begin with, as system prompts are long and few have such a line."""
    return any(_WILDCARD.split(pattern, maxsplit=1)[0] in content for pattern in patterns)
