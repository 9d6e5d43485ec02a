"""The one internal request that every API dialect is parsed into. Immutable; `dict` never travels except JSON schemas."""

from typing import Any, Literal

import msgspec

from backends.wire import Sampling

ServiceTier = Literal["auto", "default", "flex", "priority"]
Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is the JSON text as sent; it need not parse."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Content parts are joined to text when parsed; `developer` becomes `system`."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """`strict`: its calls must satisfy `parameters`, which then are within what grammars can hold."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class CallRule(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls may be written: `tools` only, at least one if `required`, several if `parallel`."""

    param: str
    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`model` is `auto`, a tier or a model name. `tools` are what the model is shown (empty under tool_choice `none`).

    `text` is a prompt that goes to the model as it stands: there are no messages then. `num_choices` answers are asked for.
    `calls` holds the answer to a form that differs by model; a form that does not is in `sampling.grammar`.

    `normalized` says what `text.steady` took out or put in order. `keep_s` is for how long the caller wants its prefix kept.
    `advisory` lists the fields that were accepted and change nothing; `hints` are body fields that identify runs.
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
        """What an answer says of `service_tier`; None where nobody asked."""
        return "default" if self.service_tier == "auto" else self.service_tier

    @property
    def has_grammar(self) -> bool:
        return self.calls is not None or self.sampling.grammar is not None
