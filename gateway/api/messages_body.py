"""Fields of a message's request body in Anthropic's format. Strict: an unknown field is an error."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.chat_body import MAX_MESSAGES, MAX_TOOLS, Count, FunctionName, Label, StopText, TopK, TopP


class CacheControl(msgspec.Struct, frozen=True, kw_only=True):
    """A cache mark. Prefixes are cached without it; its `ttl` limits how long after this request the next one may come."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None

    @property
    def keep_s(self) -> float:
        return 3600.0 if self.ttl == "1h" else 300.0


Cache = CacheControl | None


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str
    cache_control: Cache = None
    citations: Any = None


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""
    cache_control: Cache = None


class ToolUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    id: Label
    name: Label
    input: dict[str, Any]
    cache_control: Cache = None
    caller: Any = None


class ToolResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    tool_use_id: Label
    content: str | tuple[TextBlock, ...] = ""
    is_error: bool | None = None
    cache_control: Cache = None


class UserTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="user"):
    content: str | tuple[TextBlock | ToolResult, ...]


class AssistantTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="assistant"):
    content: str | tuple[TextBlock | ThinkingBlock | ToolUse, ...]


class ClaudeTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: FunctionName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Cache = None
    eager_input_streaming: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str | None = None
    session_id: str | None = None
    litellm_session_id: str | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: str | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    schema: dict[str, Any] | None = None
    fit: bool | None = None


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `count_tokens`: all fields that determine the prompt."""

    model: Label
    messages: Annotated[tuple[UserTurn | AssistantTurn, ...], Meta(max_length=MAX_MESSAGES)]
    system: str | tuple[TextBlock, ...] | None = None
    tools: Annotated[tuple[ClaudeTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: Cache = None
    output_config: OutputConfig | None = None
    context_management: Any = None
    mcp_servers: Any = None


class MessagesBody(CountBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_tokens: Count
    stop_sequences: Annotated[tuple[StopText, ...], Meta(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    container: Any = None
    inference_geo: Any = None
    speed: Any = None
    program_id: str | None = None
    session_id: str | None = None
    litellm_session_id: str | None = None
    prompt_cache_key: str | None = None
    conversation: str | None = None
    previous_response_id: str | None = None
