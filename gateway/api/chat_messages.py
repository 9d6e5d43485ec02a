"""Converts the messages and tools of a chat body and checks them for errors that would otherwise be silent.

Tool results must follow the assistant message with the calls: exactly one for each call.
"""

from collections.abc import Sequence

from gateway.api.chat_body import (
    AssistantMessage,
    BodyMessage,
    BodyTool,
    RefusalPart,
    TextPart,
    ToolMessage,
    UserMessage,
)
from gateway.api.tool_definitions import OfferedTools, missing, refuse_kind
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.request import Message, Role, Tool, ToolCall


def read_messages(body_messages: Sequence[BodyMessage]) -> tuple[Message, ...]:
    """Convert the messages. Raises BadRequest with the path of the message at fault."""
    if not body_messages:
        raise BadRequest("messages is empty: send at least one message", param="messages")
    messages: list[Message] = []
    open_calls: set[str] = set()
    for position, message in enumerate(body_messages):
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
        raise _unanswered(open_calls, len(body_messages))
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
            raise BadRequest(f"{param}: '{call.id}' is used twice: give each call its own id", param=param)
        calls[call.id] = ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
    return tuple(calls.values())


def _text(content: str | Sequence[TextPart | RefusalPart]) -> str:
    """Return the text of the parts, joined by line breaks as vLLM does: the client sent them as separate pieces."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def read_tools(given: Sequence[BodyTool]) -> tuple[Tool, ...]:
    """Convert the tools. Raises BadRequest with the path of the tool at fault."""
    tools = OfferedTools()
    for n, entry in enumerate(given):
        function = entry.function
        if entry.type != "function":
            raise refuse_kind(entry.type, "function", path=f"tools[{n}]")
        if function is None:
            raise missing("function", path=f"tools[{n}]")
        path = f"tools[{n}].function"
        tools.add(function.name, function.description, function.parameters, strict=function.strict, path=path)
    return tools.all()
