"""The messages and tools of a chat body, checked for what would go wrong silently, as the internal ones.

Tool results must follow the assistant message that called, one for each call and none else.
"""

from collections.abc import Sequence
from typing import Any

from gateway.api.chat_body import (
    AssistantMessage,
    BodyMessage,
    BodyTool,
    RefusalPart,
    TextPart,
    ToolMessage,
    UserMessage,
)
from gateway.api.json_schema import check_schema
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.request import Message, Role, Tool, ToolCall

MAX_TOOL_DEPTH = 100
"""Levels of a parameter schema. Real ones have fewer than ten; much deeper ones would exhaust the stack later on."""


def read_messages(given: Sequence[BodyMessage]) -> tuple[Message, ...]:
    """Raises BadRequest with the path of the message at fault."""
    if not given:
        raise BadRequest("messages is empty: send at least one message", param="messages")
    messages: list[Message] = []
    open_calls: set[str] = set()
    for position, message in enumerate(given):
        if isinstance(message, ToolMessage):
            messages.append(_tool_result(message, open_calls, position))
            continue
        if open_calls:
            raise _unanswered(open_calls, position)
        if isinstance(message, AssistantMessage):
            messages.append(_assistant(message, position))
            open_calls = {call.id for call in messages[-1].tool_calls}
        else:
            role: Role = "user" if isinstance(message, UserMessage) else "system"
            messages.append(Message(role=role, content=_text(message.content)))
    if open_calls:
        raise _unanswered(open_calls, len(given))
    return tuple(messages)


def _tool_result(message: ToolMessage, open_calls: set[str], position: int) -> Message:
    if message.tool_call_id not in open_calls:
        param = f"messages[{position}].tool_call_id"
        raise BadRequest(
            f"{param}: '{message.tool_call_id}' answers no open call: a tool message must follow the assistant message "
            "whose tool_calls has that id, once",
            param=param,
        )
    open_calls.remove(message.tool_call_id)
    return Message(role="tool", content=_text(message.content), tool_call_id=message.tool_call_id)


def _unanswered(open_calls: set[str], position: int) -> BadRequest:
    names = ", ".join(f"'{name}'" for name in sorted(open_calls)[:5])
    param = f"messages[{position}]"
    return BadRequest(
        f"{param}: tool calls {names} before it have no result: send a tool message for each right after them",
        param=param,
    )


def _assistant(message: AssistantMessage, position: int) -> Message:
    path = f"messages[{position}]"
    for name, value in (("function_call", message.function_call), ("audio", message.audio)):
        if value is not None:
            raise UnsupportedParameter(f"{path}.{name} is not supported: use content and tool_calls", param=f"{path}.{name}")
    if message.content is None and message.refusal is None and not message.tool_calls:
        raise BadRequest(
            f"{path}.content is missing: an assistant message needs content or tool_calls", param=f"{path}.content"
        )
    said = message.refusal if message.content is None else message.content
    return Message(
        role="assistant",
        content=_text(said or ""),
        tool_calls=_calls(message, path),
        reasoning=message.reasoning_content or "",
    )


def _calls(message: AssistantMessage, path: str) -> tuple[ToolCall, ...]:
    if not message.tool_calls:
        return ()
    calls: dict[str, ToolCall] = {}
    for n, call in enumerate(message.tool_calls):
        if call.type != "function":
            param = f"{path}.tool_calls[{n}].type"
            raise UnsupportedParameter(f"{param}: '{call.type[:64]}' is not supported: use function", param=param)
        if call.id in calls:
            param = f"{path}.tool_calls[{n}].id"
            raise BadRequest(f"{param}: '{call.id}' is used twice: give each call an id of its own", param=param)
        calls[call.id] = ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
    return tuple(calls.values())


def _text(content: str | Sequence[TextPart | RefusalPart]) -> str:
    """Parts are joined by line breaks, as vLLM does: they are pieces that a client kept apart."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def read_tools(given: Sequence[BodyTool]) -> tuple[Tool, ...]:
    """Raises BadRequest with the path of the tool at fault."""
    tools: dict[str, Tool] = {}
    for n, entry in enumerate(given):
        function = entry.function
        if entry.type != "function":
            param = f"tools[{n}].type"
            raise UnsupportedParameter(f"{param}: '{entry.type[:64]}' is not supported: use function", param=param)
        if function is None:
            raise BadRequest(f"tools[{n}].function is missing: it is required", param=f"tools[{n}].function")
        if function.name in tools:
            param = f"tools[{n}].function.name"
            raise BadRequest(f"{param}: '{function.name}' is used twice: give each tool a name of its own", param=param)
        if function.parameters and is_deeper(function.parameters, MAX_TOOL_DEPTH):
            param = f"tools[{n}].function.parameters"
            raise BadRequest(f"{param} is nested deeper than {MAX_TOOL_DEPTH} levels: flatten it", param=param)
        if function.strict:
            check_schema(function.parameters or {}, param=f"tools[{n}].function.parameters")
        tools[function.name] = Tool(
            name=function.name,
            description=function.description or "",
            parameters=function.parameters,
            strict=bool(function.strict),
        )
    return tuple(tools.values())


def is_deeper(value: dict[str, Any], limit: int) -> bool:
    """Level by level, so that the depth of what was sent costs no stack."""
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
