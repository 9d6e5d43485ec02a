"""The types of a policy file. Strict: an unknown key and a reference to an unknown name are errors.

`policies/policy.schema.json` and `docs/config.md` are generated from these types and their attribute docstrings.
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


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The address of the gateway and its key requirement."""

    host: str = "127.0.0.1"
    """Address to listen on. Without any key, only a loopback address is accepted."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """TCP port. 0 takes a free one."""
    require_key: bool = False
    """Refuse requests without a key, even if the policy lists none and the key store is empty."""


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device and its price. Workers that share a device split the price by `share`."""

    usd_per_hour: NotNegative
    """Dollars for each hour, busy or idle."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint directory and the tier that it belongs to."""

    path: str
    """Checkpoint directory, relative to the folder of the policy file."""
    tier: Name
    """Quality tier, one of `tiers`."""
    tool_calls: Literal["auto", "hermes", "qwen_coder", "llama_json", "mistral"] = "auto"
    """Format of tool calls. `auto` detects it from the chat template."""
    reasoning: Literal["auto", "no", "opens", "inside"] = "auto"
    """Reasoning format: none, opened by the model, or opened by the prompt. `auto` detects it from the chat template."""


class Worker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine process. The gateway starts it unless `url` names a running one. Null leaves the worker's own default."""

    model: Name
    """Model to serve, a key of `models`."""
    device: Name
    """Device to run on, a key of `devices`."""
    url: str | None = None
    """Address of a worker that already runs elsewhere."""
    token: str | None = None
    """Token that the remote worker requires. Write `${NAME}` to take it from the environment."""
    token_file: str | None = None
    """File with the token, in place of `token`: a systemd credential, or a path from the policy's folder."""
    share: Share | None = None
    """Part of the device's price that a busy second of this worker costs. Null is an equal part."""
    threads: Count | None = None
    """CPU threads. Null divides the cores among the local workers."""
    kv_tokens: Count | None = None
    """Capacity of the KV pages in tokens."""
    host_kv_tokens: Count | None = None
    """Capacity of the host cache in tokens."""
    kv_dtype: Literal["auto", "int8"] | None = None
    """Type of the KV cache."""
    speculate: Literal["off", "lookup"] | None = None
    """Speculative decoding by prompt lookup."""
    draft: Name | None = None
    """Draft model for speculative decoding. It must use the same tokenizer."""
    prefill_tokens: Count | None = None
    """Prompt tokens in one step."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations and KV."""
    linear: Literal["auto", "float32", "bfloat16", "w8a8", "int4"] = "auto"
    """Kernel of the weight matrices."""
    max_sequences: Count = 32
    """Sequences in one step."""


class TokenPrices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token prices of an upstream."""

    input: NotNegative
    """Dollars for a million prompt tokens."""
    output: NotNegative
    """Dollars for a million output tokens."""
    cached: NotNegative | None = None
    """Dollars for a million cached prompt tokens. Null is the price of `input`."""

    def usd(self, uncached_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        cached = self.input if self.cached is None else self.cached
        return (uncached_tokens * self.input + cached_tokens * cached + output_tokens * self.output) / 1e6


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Timeouts of an upstream, in seconds."""

    connect_s: Positive = 5.0
    """Until the connection is open."""
    first_s: Positive = 60.0
    """Until the first byte of an answer."""
    idle_s: Positive = 30.0
    """Between two pieces of an answer."""
    total_s: Positive = 600.0
    """Until the answer is complete."""


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenAI-compatible server that Headway does not host."""

    url: Annotated[str, Meta(pattern=r"^https?://")]
    """Base URL up to and including `/v1`."""
    model: Name
    """Name that callers and routes use for it."""
    tier: Name
    """Quality tier, one of `tiers`."""
    prices: TokenPrices
    """Token prices."""
    served_as: str = ""
    """Model name that the server expects. Empty is the value of `model`."""
    key: str | None = None
    """API key of the server. Write `${NAME}` to take it from the environment."""
    key_file: str | None = None
    """File with the API key, in place of `key`: a systemd credential, or a path from the policy's folder."""
    context_tokens: Count = 128_000
    """Context length in tokens."""
    concurrency: Count = 64
    """Requests at one time."""
    timeouts: Timeouts = Timeouts()
    """Timeouts of one attempt."""
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
    """Further attempts before the first byte of an answer."""
    failures: Count = 5
    """Failures in a row that open the circuit breaker."""
    cooldown_s: Positive = 10.0
    """Seconds that the circuit breaker stays open before one probe."""
    cache_s: NotNegative = 300.0
    """Seconds for which the server is expected to keep a chain's prefix."""


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rate limits of a key or a tenant. Null is unlimited."""

    requests_per_minute: Count | None = None
    """Requests in a minute."""
    tokens_per_minute: Count | None = None
    """Prompt and output tokens in a minute."""
    concurrent_requests: Count | None = None
    """Requests at one time."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key of which only the SHA-256 is stored. The hash is fast, so the key must be long and random, as `headway keys create`
    makes it."""

    tenant: Name
    """Tenant that the key belongs to."""
    hash: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$", description="sha256: and 64 lower-case hex digits")]
    """SHA-256 of the key: `sha256:` and 64 lower-case hex digits."""
    limits: RateLimits = RateLimits()
    """Rate limits of this key."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payer: its keys, its rights and its share of the fleet."""

    keys: tuple[str, ...] = ()
    """Keys in plain text. Write `${NAME}` to take one from the environment, or list hashes in the policy's `keys`."""
    key_files: tuple[str, ...] = ()
    """Files with one key each: systemd credentials, or paths from the policy's folder."""
    weight: Positive = 1.0
    """Weight of the tenant when workers are shared."""
    models: tuple[str, ...] = ()
    """Models and tiers that it may ask for. Empty means all."""
    slo: tuple[Name, ...] = ()
    """SLO classes that it may request although they are stricter than the route's."""
    limits: RateLimits = RateLimits()
    """Rate limits of all its keys together."""
    share_prefix: Literal["none", "system"] = "none"
    """`system` shares cached system prompts and tools with other tenants that set it too. Timing then reveals that another
    tenant sent the same prompt. User messages are never shared."""
    operator: bool = False
    """Its keys see the runs and dollars of every tenant, idle time and the policy."""


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conditions of a route. All that are given must hold."""

    model: tuple[str, ...] = ()
    """Values of the request's `model`."""
    tenant: tuple[Name, ...] = ()
    """Tenants."""
    key: tuple[str, ...] = ()
    """Keys: in plain text as `${NAME}`, by name in `keys`, or by id in the key store."""
    headers: dict[str, str] = {}
    """Patterns with `*` and `?` by header. A missing header matches nothing."""
    tools: bool | None = None
    """Whether the request offers tools."""
    min_prompt_tokens: Annotated[int, Meta(ge=0)] | None = None
    """Smallest prompt."""
    max_prompt_tokens: Annotated[int, Meta(ge=0)] | None = None
    """Largest prompt."""


class Escalate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds back the first tokens of a lower tier's answer, and escalates to the best tier if the answer is doubtful."""

    tokens: Annotated[int, Meta(ge=1, le=256)] | None = None
    """Output tokens to hold back. Null is the fitted number of `headway router escalation`."""
    bar: Share | None = None
    """Chance of a good answer below which the request escalates. Null derives it from the price of escalation and from
    `mistake_cost`; where that is 0 it is the fitted bar."""


class Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An experiment on a share of a route's runs. A run always falls into the same arm. Absent keys keep the route's values."""

    share: Share
    """Share of the runs."""
    candidates: tuple[Name, ...] = ()
    """Replaces the route's `candidates`."""
    quality_bar: Share | None = None
    """Replaces the route's `quality_bar`."""
    mistake_cost: NotNegative | None = None
    """Replaces the route's `mistake_cost`."""
    escalate: Escalate | None = None
    """Replaces the route's `escalate`."""


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A spending limit. Each payer has its own account. Null is unlimited."""

    per: Literal["tenant", "key", "run"] = "tenant"
    """Payer."""
    usd: NotNegative | None = None
    """Dollars in a window."""
    tokens: Annotated[int, Meta(ge=0)] | None = None
    """Prompt and output tokens in a window."""
    turns: Annotated[int, Meta(ge=0)] | None = None
    """Turns in a window."""
    window_s: Positive | None = None
    """Length of a window in seconds. Null never resets."""


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Treatment of the requests that match. The first route that matches applies."""

    name: Name
    """Name of the route."""
    match: Match = Match()
    """Conditions. Without any, the route matches every request."""
    candidates: tuple[Name, ...]
    """Tiers and models to choose from, in any order."""
    fallbacks: tuple[Name, ...] = ()
    """Tiers and models to use while no candidate is up."""
    quality_bar: Share = 0.9
    """Smallest calibrated chance of an answer as good as the top tier's."""
    mistake_cost: NotNegative = 0.0
    """Price of a worse answer above the bar, in typical requests (256 tokens in, 32 out) of the top tier."""
    escalate: Escalate | None = None
    """Escalation of doubtful answers. Null switches it off."""
    split: dict[Name, Arm] = {}
    """Experiments by name."""
    slo: Name = "interactive"
    """SLO class, a key of `slo`."""
    on_overload: Literal["queue", "degrade", "shed"] = "queue"
    """Treatment of a request that would miss its SLO in the queue."""
    budgets: tuple[Name, ...] = ()
    """Budgets that its requests are charged to."""
    lock_tool_loop: bool = True
    """Keep the model inside a tool loop."""


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An SLO class. Null is no limit."""

    ttft_s: Positive | None = None
    """Seconds until the first token."""
    deadline_s: Positive | None = None
    """Seconds until the end of the answer."""
    miss_penalty_usd: NotNegative = 0.0
    """Dollars that a miss counts in a decision."""
    ttft_idle_factor: Positive = 4.0
    """Admission allows a TTFT of this multiple of an idle worker's, although it is over `ttft_s`: prompts too long for it."""


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Normalization of a request, so that its prompt shares the prefix of the previous turn."""

    drop_lines: tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...] = ("x-anthropic-billing-header:*",)
    """Patterns with `*` and `?`. Matching lines of system messages are dropped."""
    sort_tools: bool = True
    """Show tools to the model in the order of their names."""


class Scheduling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Switches of run-aware scheduling."""

    order: Literal["runs", "arrival"] = "runs"
    """Order of the queue. `arrival` is first come, first served."""
    retention: bool = True
    """Send workers a retention score for the pages of each paused chain. Without it, workers use LRU."""
    placement: bool = True
    """Place runs among equal workers by their pages. Without it, the cheapest worker at the moment is chosen."""
    batch_share: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Share of a worker's starts that batch requests get while other requests keep it busy."""
    tenant_idle_s: Positive = 60.0
    """Seconds after a request during which seats are reserved for its tenant."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the gateway. They take effect at start."""

    max_body_bytes: Count = 10_000_000
    """Bytes of a request body."""
    max_queued_requests: Count = 1024
    """Requests in the queue."""
    max_queued_tokens: Count = 50_000_000
    """Uncached prompt tokens in the queue."""
    max_queued_bytes: Count = 1_000_000_000
    """Bytes of prompts in the queue, and again of request bodies being received."""
    max_queue_s: Positive = 300.0
    """Seconds that a request waits at most."""
    max_silence_s: Positive = 120.0
    """Seconds without a step after which a busy worker counts as hung."""
    run_idle_s: Positive = 900.0
    """Seconds without a request after which a run ends."""
    max_runs: Count = 100_000
    """Live runs in memory."""


def _slo_classes() -> dict[str, Slo]:
    return {"interactive": Slo(ttft_s=0.2), "agent": Slo(ttft_s=0.4), "batch": Slo(deadline_s=3600.0)}


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole policy file."""

    version: Literal[1]
    """Version of the format."""
    listen: Listen = Listen()
    """Address and key requirement."""
    devices: dict[Name, Device] = {}
    """Devices by name."""
    tiers: tuple[Name, ...]
    """Quality tiers from the cheapest to the best. The last is the reference for quality."""
    models: dict[Name, Model] = {}
    """Hosted models by name."""
    workers: dict[Name, Worker] = {}
    """Workers by name."""
    upstreams: dict[Name, Upstream] = {}
    """Upstreams by name."""
    tenants: dict[Name, Tenant] = {}
    """Tenants by name."""
    keys: dict[Name, ApiKey] = {}
    """Hashed API keys by name."""
    slo: dict[Name, Slo] = msgspec.field(default_factory=_slo_classes)
    """SLO classes by name."""
    service_tiers: dict[ServiceTier, Name] = {}
    """SLO class by value of `service_tier`. Without an entry, `auto` and `default` mean the route's class."""
    budgets: dict[Name, Budget] = {}
    """Budgets by name."""
    routes: tuple[Route, ...]
    """Routes in the order of evaluation."""
    router: str | None = None
    """Quality artefact, relative to the folder of the policy file. Null always chooses the top candidate tier."""
    limits: Limits = Limits()
    """Bounds of the gateway."""
    scheduling: Scheduling = Scheduling()
    """Switches of run-aware scheduling."""
    text: Text = Text()
    """Normalization of requests."""
    include: tuple[str, ...] = ()
    """Files to include, relative to this one. Names and routes of this file take precedence."""

    def tier_by_model(self) -> dict[str, str]:
        """The tier of every model that a worker or an upstream may serve."""
        tiers = {name: model.tier for name, model in self.models.items()}
        return tiers | {upstream.model: upstream.tier for upstream in self.upstreams.values()}

    def model_by_server(self) -> dict[str, str]:
        """The model of every worker and upstream."""
        models = {name: worker.model for name, worker in self.workers.items()}
        return models | {name: upstream.model for name, upstream in self.upstreams.items()}
