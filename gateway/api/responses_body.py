"""Fields of a response's request body in OpenAI's format. Strict: an unknown field is an error."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.api.chat_body import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Count,
    Effort,
    FunctionName,
    Label,
    Temperature,
    Text,
    TopLogprobs,
    TopP,
)
from gateway.api.run_fields import RunFields
from gateway.request import ServiceTier


class InputPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part: `input_text`, `output_text` or `refusal`. Its other fields add no information and are ignored."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str | tuple[InputPart, ...]
    type: str = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    call_id: Label
    name: Text
    arguments: str
    type: str = "function_call"
    id: str | None = None
    status: str | None = None
    caller: Any = None
    namespace: str | None = None


class FunctionOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    call_id: Label
    output: str | tuple[InputPart, ...]
    type: str = "function_call_output"
    id: str | None = None
    status: str | None = None
    caller: Any = None
    name: str | None = None


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "reasoning"
    content: tuple[InputPart, ...] | None = None


class ResponseTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool definition. It accepts unknown fields, so that a tool of another type is refused for its type."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    pattern: str | None = None
    fit: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None


class ResponsesBody(RunFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A response's request body. `top_k`, `seed` and `stop` are not in this dialect."""

    model: Label
    input: str | Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    include: tuple[str, ...] | None = None
    tools: Annotated[tuple[ResponseTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: ServiceTier | None = None
    truncation: str | None = None
    background: bool | None = None
    max_tool_calls: Any = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
