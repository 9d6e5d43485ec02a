"""Internal request that every API dialect is parsed into. Immutable; only JSON schemas are plain dicts."""

from typing import Any, Literal

import msgspec

from backends.wire import Sampling

ServiceTier = Literal["auto", "default", "flex", "priority"]
Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool. `arguments` is the JSON text as sent; it may be invalid."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message. The dialects join content parts to one text and map `developer` to `system`."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool definition. With `strict` its calls must satisfy `parameters`, which a grammar must be able to express."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class CallRule(msgspec.Struct, frozen=True, kw_only=True):
    """Constraint on tool calls: only `tools`, at least one if `required`, several if `parallel`."""

    param: str
    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `model` is `auto`, a tier or a model name. `tools` are shown to the model (empty under tool_choice `none`).

    `text` is a raw prompt, which replaces the messages. `num_choices` is the number of answers. `calls` constrains the answer
    to a form that differs by model; a form common to all models is in `sampling.grammar`.

    `normalized` lists what `text.normalize` removed or reordered. `keep_s` is the seconds to keep the prefix cached. `advisory`
    lists accepted fields without effect. `hints` are body fields that identify runs.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    sampling: Sampling
    max_tokens_given: bool = False
    stream: bool = False
    include_usage: bool = False
    advisory: tuple[str, ...] = ()
    hints: tuple[tuple[str, str], ...] = ()
    normalized: tuple[str, ...] = ()
    keep_s: float = 0.0
    text: str | None = None
    num_choices: int = 1
    calls: CallRule | None = None
    service_tier: ServiceTier | None = None
    reasoning_effort: str | None = None
    effort_param: str = "reasoning_effort"

    @property
    def served_tier(self) -> Literal["default", "flex", "priority"] | None:
        """Return the `service_tier` of the response; None when the request has none."""
        return "default" if self.service_tier == "auto" else self.service_tier

    @property
    def has_grammar(self) -> bool:
        return self.calls is not None or self.sampling.grammar is not None
