"""Message content of a request in the form of the OpenTelemetry GenAI conventions. Built only if capture is on."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.request import Message, Request
from gateway.telemetry.record import Content


def content_of(request: Request, answer: Message | None, finish_reason: str) -> Content:
    """Return the content, with system texts apart from the messages. `answer` is None for an unfinished request."""
    system = [_text(message.content) for message in request.messages if message.role == "system"]
    asked = [_message(message) for message in request.messages if message.role != "system"]
    answered = [{**_message(answer), "finish_reason": finish_reason}] if answer else []
    tools = [{"type": "function", **msgspec.to_builtins(tool)} for tool in request.tools]
    return Content(system=_json(system), asked=_json(asked), answered=_json(answered), tools=_json(tools))


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        parts = [{"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}]
        return {"role": "tool", "parts": parts}
    parts = [_text(message.content)] if message.content else []
    for call in message.tool_calls:
        parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments})
    return {"role": message.role, "parts": parts}


def _text(text: str) -> dict[str, str | None]:
    return {"type": "text", "content": text}


def _json(values: Sequence[Any]) -> str:
    return msgspec.json.encode(values).decode() if values else ""
