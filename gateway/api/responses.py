"""Parses the body of POST /v1/responses into a Request. The conversation of a previous response is prepended."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from backends.wire import Sampling
from gateway.api.chat import DAY_S
from gateway.api.decode import BodyDecoder, refusal
from gateway.api.format import read_format
from gateway.api.responses_body import (
    FunctionCall,
    FunctionOutput,
    InputMessage,
    InputPart,
    ReasoningItem,
    ResponsesBody,
    ResponseTool,
)
from gateway.api.run_fields import run_hints
from gateway.api.tool_choice import rule_for
from gateway.api.tool_definitions import OfferedTools, missing, refuse_kind
from gateway.api.tool_results import check_call_order
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.policy.mismatch import Mismatch, find_mismatch
from gateway.request import Message, Request, Role, Tool, ToolCall

NO_OPS: Mapping[str, tuple[Any, ...]] = {
    "truncation": ("disabled",),
    "background": (False,),
    "max_tool_calls": (),
    "conversation": (),
    "prompt": (),
    "context_management": (),
}
ADVISORY = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
LOGPROBS = "message.output_text.logprobs"
INCLUDE = (LOGPROBS, "reasoning.encrypted_content")
ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
PARTS = ("input_text", "output_text", "text", "reasoning_text", "refusal")

_decode = BodyDecoder(ResponsesBody).decode
Kind = TypeVar("Kind", bound=msgspec.Struct)


class Parsed(NamedTuple):
    """A parsed body. `conversation` excludes instructions, which apply to one response only."""

    request: Request
    decoded: ResponsesBody
    conversation: tuple[Message, ...]


def read_body(body: bytes) -> ResponsesBody:
    return _decode(body)


def parse_response(decoded: ResponsesBody, previous: Sequence[Message], *, max_tokens_default: int) -> Parsed:
    """Parse a decoded body. `previous` is the conversation to continue.

    Raises BadRequest with the path of the field at fault in `param`, and nothing else.
    """
    advisory = _accepted(decoded)
    conversation = (*previous, *_input(decoded.input))
    check_call_order(conversation, param="input")
    messages = (Message(role="system", content=decoded.instructions), *conversation) if decoded.instructions else conversation
    if not messages:
        raise BadRequest("input is empty: send text or items", param="input")
    parallel = decoded.parallel_tool_calls is not False
    tools, calls = rule_for(_tools(decoded.tools or ()), decoded.tool_choice, parallel=parallel)
    request = Request(
        model=decoded.model,
        messages=messages,
        tools=tools,
        sampling=_sampling(decoded, max_tokens_default),
        max_tokens_given=decoded.max_output_tokens is not None,
        stream=bool(decoded.stream),
        include_usage=True,
        advisory=advisory,
        hints=run_hints(decoded),
        keep_s=DAY_S if decoded.prompt_cache_retention == "24h" else 0.0,
        calls=calls,
        service_tier=decoded.service_tier,
        reasoning_effort=decoded.reasoning.effort if decoded.reasoning else None,
        effort_param="reasoning.effort",
    )
    return Parsed(request, decoded, conversation)


def _accepted(decoded: ResponsesBody) -> tuple[str, ...]:
    names = [name for name in ADVISORY if getattr(decoded, name) is not None]
    for name, harmless in NO_OPS.items():
        value = getattr(decoded, name)
        if value is None:
            continue
        if value not in harmless:
            allowed = f" only as {' or '.join(map(str, harmless))}" if harmless else ""
            raise UnsupportedParameter(f"{name} is {'' if harmless else 'not '}supported{allowed}: leave it out", param=name)
        names.append(name)
    for entry in decoded.include or ():
        if entry not in INCLUDE:
            raise UnsupportedParameter(f"include: '{entry[:64]}' is not supported: leave it out", param="include")
    if decoded.text and decoded.text.verbosity not in (None, "medium"):
        raise UnsupportedParameter("text.verbosity is supported only as medium: leave it out", param="text.verbosity")
    return tuple(names)


def _sampling(decoded: ResponsesBody, max_tokens_default: int) -> Sampling:
    wanted = LOGPROBS in (decoded.include or ()) or bool(decoded.top_logprobs)
    format = decoded.text.format if decoded.text else None
    grammar = (
        read_format(format.type, format.schema, format.pattern, param="text.format", fit=bool(format.fit)) if format else None
    )
    return Sampling(
        max_tokens=decoded.max_output_tokens or max_tokens_default,
        temperature=decoded.temperature or 0.0,
        top_p=1.0 if decoded.top_p is None else decoded.top_p,
        top_logprobs=decoded.top_logprobs or 0 if wanted else None,
        grammar=grammar,
    )


def _tools(decoded: Sequence[ResponseTool]) -> tuple[Tool, ...]:
    tools = OfferedTools()
    for n, tool in enumerate(decoded):
        if tool.type != "function":
            raise refuse_kind(tool.type, "function", path=f"tools[{n}]")
        if tool.name is None:
            raise missing("name", path=f"tools[{n}]")
        tools.add(tool.name, tool.description, tool.parameters, strict=tool.strict, path=f"tools[{n}]")
    return tools.all()


def _input(decoded: str | Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """Return the messages. Consecutive reasoning, text and calls form one assistant message."""
    if isinstance(decoded, str):
        return (Message(role="user", content=decoded),)
    messages: list[Message] = []
    for n, item in enumerate(decoded):
        message = _item(item, f"input[{n}]")
        last = messages[-1] if messages else None
        if message.role == "assistant" and last is not None and last.role == "assistant":
            messages[-1] = _joined(last, message)
        else:
            messages.append(message)
    return tuple(messages)


def _joined(first: Message, second: Message) -> Message:
    return Message(
        role="assistant",
        content=first.content + second.content,
        reasoning=first.reasoning + second.reasoning,
        tool_calls=first.tool_calls + second.tool_calls,
    )


def _item(item: dict[str, Any], path: str) -> Message:
    kind = item.get("type", "message")
    match kind:
        case "message":
            input_message = _convert(item, InputMessage, path)
            if input_message.role not in ROLES:
                message = f"{path}.role: '{input_message.role[:64]}' is not supported: use user, assistant, system or developer"
                raise BadRequest(message, param=f"{path}.role")
            return Message(role=ROLES[input_message.role], content=_text(input_message.content, f"{path}.content"))
        case "function_call":
            call = _convert(item, FunctionCall, path)
            return Message(role="assistant", tool_calls=(ToolCall(id=call.call_id, name=call.name, arguments=call.arguments),))
        case "function_call_output":
            result = _convert(item, FunctionOutput, path)
            return Message(role="tool", content=_text(result.output, f"{path}.output"), tool_call_id=result.call_id)
        case "reasoning":
            content = _convert(item, ReasoningItem, path).content or ()
            return Message(role="assistant", reasoning=_text(content, f"{path}.content"))
        case _:
            message = f"{path}.type: '{str(kind)[:64]}' is not supported: use message, function_call or function_call_output"
            raise UnsupportedParameter(message, param=f"{path}.type")


def _text(content: str | Sequence[InputPart], path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for n, part in enumerate(content):
        if part.type not in PARTS:
            message = f"{path}[{n}].type: parts of type '{part.type[:64]}' are not supported: send text parts"
            raise UnsupportedParameter(message, param=f"{path}[{n}].type")
        texts.append(part.text or part.refusal or "")
    return "\n".join(texts)


def _convert(item: dict[str, Any], kind: type[Kind], path: str) -> Kind:
    try:
        return msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        mismatch = find_mismatch(msgspec.json.encode(item), kind, path) or Mismatch(path, "the item does not fit")
        raise refusal(mismatch) from error
