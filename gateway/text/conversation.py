"""Converts messages and tools for chat templates: plain dicts in OpenAI's format, with arguments as objects."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.request import Message, Tool, ToolCall

_decode_arguments = msgspec.json.Decoder(dict[str, Any]).decode


def as_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [_as_message(message) for message in messages]


def as_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": _as_function(tool)} for tool in tools]


def _as_message(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        data["tool_calls"] = [_as_call(call) for call in message.tool_calls]
    if message.reasoning:
        data["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        data["tool_call_id"] = message.tool_call_id
    return data


def _as_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _as_arguments(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _as_arguments(text: str) -> dict[str, Any] | str:
    """Return arguments as an object, which templates expect. Text that is not a JSON object stays text."""
    try:
        return _decode_arguments(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _as_function(tool: Tool) -> dict[str, Any]:
    """Return only the fields that were sent, so that templates that print the whole schema print the client's."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return function
