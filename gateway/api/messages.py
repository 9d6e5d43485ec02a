"""Parses the body of POST /v1/messages into a Request."""

from collections.abc import Iterable, Sequence

import msgspec

from backends.wire import Grammar, Sampling
from gateway.api.decode import BodyDecoder
from gateway.api.format import read_format
from gateway.api.messages_body import (
    AssistantTurn,
    ClaudeTool,
    CountBody,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    ToolResult,
    ToolUse,
    UserTurn,
)
from gateway.api.run_fields import run_hints
from gateway.api.tool_choice import Offered, rule_for
from gateway.api.tool_definitions import OfferedTools, missing, refuse_kind
from gateway.api.tool_results import check_call_order
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.request import Message, Request, Tool, ToolCall

REFUSED = ("context_management", "mcp_servers", "container", "inference_geo", "speed")
ADVISORY = ("cache_control", "service_tier", "metadata")
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}

_decode = BodyDecoder(MessagesBody).decode
_decode_count = BodyDecoder(CountBody).decode
_encode = msgspec.json.Encoder().encode


def parse_messages(body: bytes) -> Request:
    """Parse a request body. Raises BadRequest with the path of the field at fault in `param`, and nothing else."""
    decoded = _decode(body)
    offered = _offered(decoded)
    if decoded.service_tier not in (None, "auto", "standard_only"):
        raise UnsupportedParameter("service_tier is supported only as auto or standard_only", param="service_tier")
    return Request(
        model=decoded.model,
        messages=_messages(decoded),
        tools=offered.tools,
        sampling=Sampling(
            max_tokens=decoded.max_tokens,
            temperature=decoded.temperature or 0.0,
            top_k=max(decoded.top_k or 0, 0),
            top_p=1.0 if decoded.top_p is None else decoded.top_p,
            stop=decoded.stop_sequences or (),
            grammar=_grammar(decoded),
        ),
        max_tokens_given=True,
        stream=bool(decoded.stream),
        include_usage=True,
        advisory=_accepted(decoded),
        hints=run_hints(decoded),
        keep_s=_keep_s(decoded),
        calls=offered.calls,
        reasoning_effort=_effort(decoded),
        effort_param="thinking",
    )


def parse_count(body: bytes) -> Request:
    """Parse a body of `count_tokens`: only the prompt matters."""
    decoded = _decode_count(body)
    _accepted(decoded)
    return Request(
        model=decoded.model,
        messages=_messages(decoded),
        tools=_offered(decoded).tools,
        sampling=Sampling(max_tokens=1),
        reasoning_effort=_effort(decoded),
        effort_param="thinking",
    )


def _accepted(decoded: CountBody) -> tuple[str, ...]:
    for name in REFUSED:
        if getattr(decoded, name, None) is not None:
            raise UnsupportedParameter(f"{name} is not supported: leave it out", param=name)
    return tuple(name for name in ADVISORY if getattr(decoded, name, None) is not None)


def _keep_s(decoded: MessagesBody) -> float:
    """Return the longest time of all cache marks, in seconds; 0 without a mark."""
    marks = [decoded.cache_control, *(tool.cache_control for tool in decoded.tools or ())]
    marks += [block.cache_control for block in decoded.system or () if not isinstance(block, str)]
    marks += [block.cache_control for turn in decoded.messages for block in turn.content if not isinstance(block, str)]
    return max((mark.keep_s for mark in marks if mark is not None), default=0.0)


def _effort(decoded: CountBody) -> str | None:
    """Return the reasoning effort. `budget_tokens` is ignored, because `max_tokens` limits reasoning too."""
    effort = decoded.output_config.effort if decoded.output_config else None
    if decoded.thinking is None:
        return EFFORTS[effort] if effort else None
    if decoded.thinking.type == "disabled":
        return "none"
    return EFFORTS[effort or "medium"]


def _grammar(decoded: MessagesBody) -> Grammar | None:
    format = decoded.output_config.format if decoded.output_config else None
    if format is None:
        return None
    if format.type != "json_schema":
        param = "output_config.format.type"
        raise UnsupportedParameter(f"{param}: '{format.type[:64]}' is not supported: use json_schema", param=param)
    return read_format("json_schema", format.schema, None, param="output_config.format", fit=bool(format.fit))


def _offered(decoded: CountBody) -> Offered:
    choice = decoded.tool_choice
    tools = _tools(decoded.tools or ())
    if choice is None:
        return rule_for(tools, None, parallel=True)
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "tool":
            return rule_for(tools, {"type": "function", "name": choice.name or ""}, parallel=parallel)
        case "any":
            return rule_for(tools, "required", parallel=parallel)
        case kind:
            return rule_for(tools, kind, parallel=parallel)


def _tools(decoded: Iterable[ClaudeTool]) -> tuple[Tool, ...]:
    tools = OfferedTools()
    for n, tool in enumerate(decoded):
        path = f"tools[{n}]"
        if tool.type not in (None, "custom"):
            raise refuse_kind(tool.type, "custom", path=path)
        if tool.input_schema is None:
            raise missing("input_schema", path=path)
        tools.add(tool.name, tool.description, tool.input_schema, strict=tool.strict, path=path, schema="input_schema")
    return tools.all()


def _messages(decoded: CountBody) -> tuple[Message, ...]:
    if not decoded.messages:
        raise BadRequest("messages is empty: send at least one message", param="messages")
    messages: list[Message] = []
    if decoded.system:
        messages.append(Message(role="system", content=_text(decoded.system)))
    for n, turn in enumerate(decoded.messages):
        if isinstance(turn, UserTurn):
            messages += _user(turn)
        else:
            messages.append(_assistant(turn, n))
    check_call_order(messages, param="messages")
    if messages[-1].role == "assistant":
        message = "the last message is the assistant's: prefilled answers are not supported, end with a user's message"
        raise UnsupportedParameter(f"messages[{len(decoded.messages) - 1}]: {message}", param="messages")
    return tuple(messages)


def _user(turn: UserTurn) -> Iterable[Message]:
    """Yield the tool results first, as Anthropic requires, then the user's text as a separate message."""
    if isinstance(turn.content, str):
        yield Message(role="user", content=turn.content)
        return
    for block in turn.content:
        if isinstance(block, ToolResult):
            text = _text(block.content)
            yield Message(role="tool", content=f"Error: {text}" if block.is_error else text, tool_call_id=block.tool_use_id)
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    if texts or not turn.content:
        yield Message(role="user", content=_text(texts))


def _assistant(turn: AssistantTurn, position: int) -> Message:
    if isinstance(turn.content, str):
        return Message(role="assistant", content=turn.content)
    blocks = turn.content
    return Message(
        role="assistant",
        content="".join(block.text for block in blocks if isinstance(block, TextBlock)),
        reasoning="".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock)),
        tool_calls=tuple(
            ToolCall(id=block.id, name=block.name, arguments=_encode(block.input).decode())
            for block in blocks
            if isinstance(block, ToolUse)
        ),
    )


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
