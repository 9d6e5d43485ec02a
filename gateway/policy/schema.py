"""What a policy file may say. Strict: an unknown key is an error, and so is a reference to a name that is not there.

The JSON Schema in policies/policy.schema.json is generated from these types.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.request import ServiceTier

_NAME = "letters, digits, dot, underscore, dash: 64 at most, a letter or digit first"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description=_NAME)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
"""What OpenAI's clients may ask for."""


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`require_key`: nobody is let in without a key, though the policy may list none and the key store be empty."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    require_key: bool = False


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an hour of it costs, whoever uses it. Workers that share it share the price by `share`."""

    usd_per_hour: NotNegative


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint directory (relative to the policy file's folder) and the tier that it belongs to.

    How it writes tool calls and reasoning is read from its chat template, unless `tool_calls` and `reasoning` say so.
    """

    path: str
    tier: Name
    tool_calls: Literal["auto", "hermes", "qwen_coder", "llama_json", "mistral"] = "auto"
    reasoning: Literal["auto", "no", "opens", "inside"] = "auto"


class Worker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine process. `url` names one that runs elsewhere; else the gateway starts it.

    `share` is the part of the device's price that this worker's busy second costs; by default an equal part. What is left at
    None is the worker's own default. `draft` names a model of the same tokenizer that guesses for this one.
    """

    model: Name
    device: Name
    url: str | None = None
    token: str | None = None
    share: Share | None = None
    threads: Count | None = None
    kv_tokens: Count | None = None
    host_kv_tokens: Count | None = None
    kv_dtype: Literal["auto", "int8"] | None = None
    speculate: Literal["off", "lookup"] | None = None
    draft: Name | None = None
    prefill_tokens: Count | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    linear: Literal["auto", "float32", "bfloat16", "w8a8", "int4"] = "auto"
    max_sequences: Count = 32


class TokenPrices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dollars for a million tokens; cached ones cost as much as others where nothing is said."""

    input: NotNegative
    output: NotNegative
    cached: NotNegative | None = None

    def usd(self, uncached_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        cached = self.input if self.cached is None else self.cached
        return (uncached_tokens * self.input + cached_tokens * cached + output_tokens * self.output) / 1e6


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds: to connect, to the first byte of an answer, between two pieces of it, and of the whole of it."""

    connect_s: Positive = 5.0
    first_s: Positive = 60.0
    idle_s: Positive = 30.0
    total_s: Positive = 600.0


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenAI-compatible server that we do not host: `url` goes up to `/v1`. Callers ask for `model`, the server is asked
    for `served_as` where that differs. Write `${NAME}` for its key.

    Before the first byte it is tried `retries` times more. After `failures` in a row it is left alone for `cooldown_s`, and
    then tried with one request. What it has cached of a chain is expected to be there for `cache_s`.
    """

    url: Annotated[str, Meta(pattern=r"^https?://")]
    model: Name
    tier: Name
    prices: TokenPrices
    served_as: str = ""
    key: str | None = None
    context_tokens: Count = 128_000
    concurrency: Count = 64
    timeouts: Timeouts = Timeouts()
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
    failures: Count = 5
    cooldown_s: Positive = 10.0
    cache_s: NotNegative = 300.0


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be asked in a minute, and at the same time; tokens are those of prompts and answers. Not given is no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key of a tenant of which only the SHA-256 is known, as `sha256:` and 64 hex digits. The key must be random and long,
    as `headway keys create` makes them: nothing slow stands between this hash and somebody who guesses."""

    tenant: Name
    hash: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$", description="sha256: and 64 lower-case hex digits")]
    limits: RateLimits = RateLimits()


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys are secrets: write `${NAME}` to take one from the environment, or list their hashes under the policy's `keys`.
    `limits` are of all its keys together."""

    keys: tuple[str, ...] = ()
    weight: Positive = 1.0
    models: tuple[str, ...] = ()
    """Models and tiers it may ask for; none listed means all."""
    slo: tuple[Name, ...] = ()
    """SLO classes it may ask for by `x-headway-slo` or `service_tier` though they are stricter than the route's."""
    limits: RateLimits = RateLimits()
    share_prefix: Literal["none", "system"] = "none"
    """`system`: its system prompts and tools may be cached together with those of other tenants that say so, and a tenant can
    then tell by the time whether another has sent the same ones. What users say is never shared."""
    operator: bool = False
    """Its keys see every tenant's runs and dollars, the idle time and the policy on the dashboard; others see their own."""


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is given must hold; what is not given holds always. `key` lists API keys (write `${NAME}`); `headers` maps a
    header to a pattern with `*` and `?`, and one that is not sent matches nothing. A key that is known by its hash goes by its
    name under `keys`, or by its id in the key store."""

    model: tuple[str, ...] = ()
    tenant: tuple[Name, ...] = ()
    key: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    tools: bool | None = None
    min_prompt_tokens: Annotated[int, Meta(ge=0)] | None = None
    max_prompt_tokens: Annotated[int, Meta(ge=0)] | None = None


class Escalate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold back the first `tokens` tokens of a lower tier's answer, and begin anew on the best tier when the chance that it is
    as good, by the question and by how sure the model was of them, is below `bar`. By default `tokens` is as `headway router
    escalation` fitted it, and the bar follows from what beginning anew costs and from the route's `mistake_cost`, or is the
    fitted one where that is 0."""

    tokens: Annotated[int, Meta(ge=1, le=256)] | None = None
    bar: Share | None = None


class Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a route's runs that is treated differently: `share` of them, always the same ones."""

    share: Share
    candidates: tuple[Name, ...] = ()
    quality_bar: Share | None = None
    mistake_cost: NotNegative | None = None
    escalate: Escalate | None = None


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one tenant, key or run may spend in `window_s` seconds, or ever where none is given."""

    per: Literal["tenant", "key", "run"] = "tenant"
    usd: NotNegative | None = None
    tokens: Annotated[int, Meta(ge=0)] | None = None
    turns: Annotated[int, Meta(ge=0)] | None = None
    window_s: Positive | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`candidates` are tiers or models, any order; `fallbacks` are asked when none of them is up. `quality_bar` is the least
    calibrated chance of an answer as good as the top tier's; `lock_tool_loop` keeps the model inside a tool loop.
    `mistake_cost` is what a worse answer costs over the bar, in typical requests (256 tokens in, 32 out) of the top tier: with
    it a doubtful answer has to save enough dollars. `split` names parts of the runs that are treated differently.
    `on_overload` is what becomes of a request whose promise waiting would break."""

    name: Name
    match: Match = Match()
    candidates: tuple[Name, ...]
    fallbacks: tuple[Name, ...] = ()
    quality_bar: Share = 0.9
    mistake_cost: NotNegative = 0.0
    escalate: Escalate | None = None
    split: dict[Name, Arm] = {}
    slo: Name = "interactive"
    on_overload: Literal["queue", "degrade", "shed"] = "queue"
    budgets: tuple[Name, ...] = ()
    lock_tool_loop: bool = True


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller is promised, in seconds, and what missing it is worth in dollars."""

    ttft_s: Positive | None = None
    deadline_s: Positive | None = None
    miss_penalty_usd: NotNegative = 0.0


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to a request so that its prompt begins as that of the turn before. `drop_lines`: lines of system messages
    that match one of these patterns (with `*` and `?`) are left out, for what clients change with every request. `sort_tools`
    shows tools to the model in the order of their names, in whichever they came."""

    drop_lines: tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...] = ("x-anthropic-billing-header:*",)
    sort_tools: bool = True


class Scheduling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done by run. `order`: which request goes next; `arrival` is first come first served, whatever it is. `retention`
    tells workers what the pages of pausing chains are worth; without it they keep what was used last. `placement` chooses among
    alike workers by what they hold; without it the cheapest at the moment is taken."""

    order: Literal["runs", "arrival"] = "runs"
    retention: bool = True
    placement: bool = True


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_body_bytes: Count = 10_000_000
    max_queued_requests: Count = 1024
    max_queued_tokens: Count = 50_000_000
    max_queued_bytes: Count = 1_000_000_000
    max_queue_s: Positive = 300.0
    max_silence_s: Positive = 120.0
    run_idle_s: Positive = 900.0
    max_runs: Count = 100_000


def _slo_classes() -> dict[str, Slo]:
    return {"interactive": Slo(ttft_s=0.2), "agent": Slo(ttft_s=0.4), "batch": Slo(deadline_s=3600.0)}


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. `tiers` goes from the cheapest to the best; the last is the reference for quality."""

    version: Literal[1]
    listen: Listen = Listen()
    devices: dict[Name, Device] = {}
    tiers: tuple[Name, ...]
    models: dict[Name, Model] = {}
    workers: dict[Name, Worker] = {}
    upstreams: dict[Name, Upstream] = {}
    tenants: dict[Name, Tenant] = {}
    keys: dict[Name, ApiKey] = {}
    slo: dict[Name, Slo] = msgspec.field(default_factory=_slo_classes)
    service_tiers: dict[ServiceTier, Name] = {}
    """The SLO class that a request's `service_tier` asks for; `auto` and `default` mean the route's where they are not here."""
    budgets: dict[Name, Budget] = {}
    routes: tuple[Route, ...]
    router: str | None = None
    """The quality artefact (relative to the policy file); none means: the top candidate tier always."""
    limits: Limits = Limits()
    scheduling: Scheduling = Scheduling()
    text: Text = Text()
    include: tuple[str, ...] = ()
    """Files (relative to this one) whose names and routes are added; what is written here stands before them."""

    def tier_by_model(self) -> dict[str, str]:
        """Of every model that a worker or an upstream may serve."""
        tiers = {name: model.tier for name, model in self.models.items()}
        return tiers | {upstream.model: upstream.tier for upstream in self.upstreams.values()}

    def model_by_server(self) -> dict[str, str]:
        """Of every worker and upstream."""
        models = {name: worker.model for name, worker in self.workers.items()}
        return models | {name: upstream.model for name, upstream in self.upstreams.items()}
