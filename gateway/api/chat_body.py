"""Fields of a chat completion's request body in OpenAI's format. Strict: an unknown field is an error.

`X | None = None` throughout: null is the same as absent. Fields of type Any are known and refused (see `chat.NO_OPS`).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.request import ServiceTier

MAX_STOP_CHARS = 512
"""Characters of a stop string. The limit is ours: OpenAI names none. Every submit carries the stop strings, and output text is
delayed by up to their length."""
MAX_MESSAGES, MAX_TOOLS = 10_000, 1_000
"""Limits of list lengths. Each entry takes a few microseconds of the event loop, whatever its content."""

MAX_BIASES = 10_000
"""Entries of `logit_bias`. Every submit carries them."""

Text = Annotated[str, Meta(min_length=1)]
Label = Annotated[str, Meta(min_length=1, max_length=512)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[tuple[StopText, ...], Meta(max_length=4)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Choices = Annotated[int, Meta(ge=1, le=16)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


Content = str | tuple[TextPart, ...]


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Text
    arguments: str


class AssistantCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool call in the history. `index` is accepted because clients that assemble calls from a stream leave it in."""

    id: Label
    function: FunctionCall
    type: str = "function"
    index: int | None = None


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="role"):
    name: str | None = None


class SystemMessage(_Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="system"):
    content: Content


class DeveloperMessage(_Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="developer"):
    content: Content


class UserMessage(_Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="user"):
    content: Content


class AssistantMessage(_Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="assistant"):
    content: str | tuple[TextPart | RefusalPart, ...] | None = None
    refusal: str | None = None
    tool_calls: tuple[AssistantCall, ...] | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    reasoning_content: str | None = None


class ToolMessage(_Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tool"):
    content: Content
    tool_call_id: Label


BodyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class BodyTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool definition. It accepts unknown fields, so that a tool of another type is refused for its type."""

    type: str
    function: FunctionTool | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: FunctionName | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An output format. `regex` with its `pattern`, and `fit`, are extensions."""

    type: str
    json_schema: JsonSchema | None = None
    pattern: Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None
    fit: bool | None = None


class ConversationId(msgspec.Struct, frozen=True):
    id: Label


class ChatBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat completion's request body. `top_k`, `ignore_eos` and the fields that identify runs are extensions."""

    model: Label
    messages: Annotated[tuple[BodyMessage, ...], Meta(max_length=MAX_MESSAGES)]
    tools: Annotated[tuple[BodyTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Int64 | None = None
    stop: StopText | Stops | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    ignore_eos: bool | None = None

    n: Choices | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    service_tier: ServiceTier | None = None
    modalities: tuple[str, ...] | None = None

    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    program_id: str | None = None
    session_id: str | None = None
    litellm_session_id: str | None = None
    conversation: str | ConversationId | None = None
    previous_response_id: str | None = None

    functions: Any = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Effort | None = None
    verbosity: Any = None
    web_search_options: Any = None
