"""Prometheus metrics, one registry an app. Requests are added in batches, through counters bound to their labels.

Gauges, and the copies under vLLM's names, are computed at a scrape. Runs are never labels. The first MAX_TENANTS tenants are;
all others share one label.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from gateway.telemetry.record import RequestRecord

# Buckets of the OpenTelemetry GenAI conventions, in seconds and tokens.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)

VLLM_TWINS = {
    "gen_ai_server_request_duration_seconds": "vllm:e2e_request_latency_seconds",
    "gen_ai_server_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "gen_ai_server_time_per_output_token_seconds": "vllm:inter_token_latency_seconds",
    "headway_queue_seconds": "vllm:request_queue_time_seconds",
    "headway_prompt_tokens": "vllm:prompt_tokens",
    "headway_cached_tokens": "vllm:prefix_cache_hits",
    "headway_output_tokens": "vllm:generation_tokens",
}
OLD_VLLM_TWINS = {"gen_ai_server_time_per_output_token_seconds": "vllm:time_per_output_token_seconds"}
"""Names that vLLM no longer uses and dashboards still query."""
FOLDED_AT = 64
"""Requests of one batch: in a tight loop each costs a third of what it costs between other work."""
MAX_LABEL_SETS = 1_000
MAX_TENANTS = 50
OTHER_TENANTS = "(others)"


class Gauge(NamedTuple):
    """One value read at scrape time, with its labels. `counts` marks a counter."""

    name: str
    help: str
    labels: dict[str, str]
    value: float
    counts: bool = False


class _Bound:
    """All series of one (model, worker, reason), looked up once."""

    __slots__ = (
        "cached",
        "cost",
        "counterfactual",
        "decision",
        "device",
        "duration",
        "input",
        "output",
        "prompt",
        "queue",
        "saved",
        "tokens_out",
        "tpot",
        "ttft",
    )

    def __init__(self, metrics: "Metrics", model: str, tier: str, worker: str, reason: str) -> None:
        self.decision = metrics.decisions.labels(model, tier, worker, reason)
        self.duration = metrics.duration.labels(model)
        self.ttft = metrics.ttft.labels(model)
        self.tpot = metrics.tpot.labels(model)
        self.queue = metrics.queue.labels(model)
        self.input = metrics.tokens.labels(model, "input")
        self.tokens_out = metrics.tokens.labels(model, "output")
        self.prompt = metrics.prompt_tokens.labels(model)
        self.cached = metrics.cached_tokens.labels(model)
        self.output = metrics.output_tokens.labels(model)
        self.device = metrics.device_s.labels(model, worker)
        self.cost = metrics.cost_usd.labels(model, worker)
        self.saved = metrics.saved_usd.labels(model, worker)
        self.counterfactual = metrics.counterfactual_usd.labels(model, worker)

    def observe(self, record: RequestRecord) -> None:
        self.duration.observe(record.duration_s)
        self.queue.observe(record.queue_s)
        self.input.observe(record.prompt_tokens)
        self.tokens_out.observe(record.output_tokens)
        if record.ttft_s is not None:
            self.ttft.observe(record.ttft_s)
            if record.output_tokens > 1:
                self.tpot.observe(max(0.0, record.duration_s - record.ttft_s) / (record.output_tokens - 1))

    def add(self, sums: "_Sums") -> None:
        self.decision.inc(sums.requests)
        self.prompt.inc(sums.prompt)
        self.cached.inc(sums.cached)
        self.output.inc(sums.output)
        self.device.inc(sums.device_s)
        self.cost.inc(sums.usd)
        self.saved.inc(sums.saved_usd)
        self.counterfactual.inc(sums.counterfactual_usd)


@dataclass(slots=True)
class _Sums:
    """Sums over a batch of requests of one model, worker and reason."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    device_s: float = 0.0
    usd: float = 0.0
    saved_usd: float = 0.0
    counterfactual_usd: float = 0.0

    def add(self, record: RequestRecord) -> None:
        self.requests += 1
        self.prompt += record.prompt_tokens
        self.cached += record.cached_tokens
        self.output += record.output_tokens
        self.device_s += record.device_s
        self.usd += record.cost_usd
        self.saved_usd += record.saved_usd
        self.counterfactual_usd += record.counterfactual_usd


class Metrics:
    def __init__(self, gauges: Callable[[], Iterable[Gauge]] = tuple) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "headway_requests", "Requests by outcome.", ["outcome", "status", "error_code"], registry=registry
        )
        self.decisions = Counter(
            "headway_decisions", "Routing decisions carried out.", ["model", "tier", "worker", "reason"], registry=registry
        )
        self.failovers = Counter("headway_failovers", "Attempts retried after a worker was lost.", registry=registry)
        self.slo = Counter(
            "headway_slo", "Requests by SLO class, and whether they met their SLO.", ["slo", "met"], registry=registry
        )
        self.tokens = Histogram(
            "gen_ai_client_token_usage", "Input and output tokens of a request.", ["model", "gen_ai_token_type"],
            buckets=TOKENS, registry=registry,
        )  # fmt: skip
        of_tenant = ["tenant"]
        self.tenant_requests = Counter("headway_tenant_requests", "Requests by tenant.", of_tenant, registry=registry)
        self.tenant_usd = Counter("headway_tenant_cost_usd", "Dollars charged by tenant.", of_tenant, registry=registry)
        self._tenants: set[str] = set()
        by_model = partial(Histogram, labelnames=["model"], registry=registry)
        self.duration = by_model(
            "gen_ai_server_request_duration_seconds", "Seconds from arrival to the last byte.", buckets=DURATION_S
        )
        self.ttft = by_model(
            "gen_ai_server_time_to_first_token_seconds", "Seconds from arrival to the first token.", buckets=TTFT_S
        )
        self.tpot = by_model(
            "gen_ai_server_time_per_output_token_seconds", "Seconds per output token after the first.", buckets=TPOT_S
        )
        self.queue = by_model("headway_queue_seconds", "Seconds queued in the gateway and the worker.", buckets=TTFT_S)
        self.prompt_tokens = Counter("headway_prompt_tokens", "Prompt tokens.", ["model"], registry=registry)
        self.cached_tokens = Counter("headway_cached_tokens", "Prompt tokens found in cache.", ["model"], registry=registry)
        self.output_tokens = Counter("headway_output_tokens", "Tokens generated.", ["model"], registry=registry)
        of_worker = ["model", "worker"]
        self.device_s = Counter("headway_device_seconds", "Device time charged to requests.", of_worker, registry=registry)
        self.cost_usd = Counter("headway_cost_usd", "Dollars charged to requests.", of_worker, registry=registry)
        self.saved_usd = Counter("headway_saved_usd", "Dollars saved by cached prefixes.", of_worker, registry=registry)
        self.counterfactual_usd = Counter(
            "headway_counterfactual_usd", "Dollars if the best tier had answered all requests.", of_worker, registry=registry
        )
        twins = [self.duration, self.ttft, self.tpot, self.queue, self.prompt_tokens, self.cached_tokens, self.output_tokens]
        registry.register(_AtScrape(gauges, twins))
        self._bound: dict[tuple[str, str, str], _Bound] = {}
        self._pending: list[RequestRecord] = []

    def record(self, record: RequestRecord) -> None:
        """Record an ended request, exactly once. It shows with the next full batch, or at a scrape."""
        self._pending.append(record)
        if len(self._pending) >= FOLDED_AT:
            self._fold()

    def _fold(self) -> None:
        """Add the batch: counters are summed first, then increased once a series."""
        pending, self._pending = self._pending, []
        outcomes, attained = Counts[tuple[str, str, str]](), Counts[tuple[str, str]]()
        tenants: dict[str, list[float]] = {}
        sums: dict[_Bound, _Sums] = {}
        for record in pending:
            outcomes[record.outcome, str(record.status), record.error_code] += 1
            if record.slo_met is not None and record.slo:
                attained[record.slo, "yes" if record.slo_met else "no"] += 1
            if record.tenant:
                tenants.setdefault(self._tenant(record.tenant), []).append(record.cost_usd)
            if record.decision is not None:
                bound = self._bind(record)
                bound.observe(record)
                sums.setdefault(bound, _Sums()).add(record)
        for labels, number in outcomes.items():
            self.requests.labels(*labels).inc(number)
        for slo_labels, number in attained.items():
            self.slo.labels(*slo_labels).inc(number)
        for tenant, costs in tenants.items():
            self.tenant_requests.labels(tenant).inc(len(costs))
            self.tenant_usd.labels(tenant).inc(sum(costs))
        for bound, batch in sums.items():
            bound.add(batch)

    def _tenant(self, name: str) -> str:
        if name not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return OTHER_TENANTS
            self._tenants.add(name)
        return name

    def _bind(self, record: RequestRecord) -> _Bound:
        assert record.decision
        chosen = record.decision.chosen
        key = (chosen.model, chosen.worker, record.decision.reason)
        bound = self._bound.get(key)
        if bound is None:
            assert len(self._bound) < MAX_LABEL_SETS, "models, workers and reasons come from the policy: they are few"
            bound = self._bound[key] = _Bound(self, chosen.model, chosen.tier, chosen.worker, record.decision.reason)
        return bound

    def render(self) -> bytes:
        """Return all metrics in Prometheus text format."""
        self._fold()
        return generate_latest(self.registry)


class _AtScrape(Collector):
    def __init__(self, gauges: Callable[[], Iterable[Gauge]], twins: Iterable[Collector]) -> None:
        self._gauges = gauges
        self._twins = tuple(twins)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, text, labels, value, counts in self._gauges():
            if name not in families:
                families[name] = (CounterMetricFamily if counts else GaugeMetricFamily)(name, text, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        yield from families.values()
        for twin in self._twins:
            for metric in twin.collect():
                yield _renamed(metric, VLLM_TWINS[metric.name])
                if old := OLD_VLLM_TWINS.get(metric.name):
                    yield _renamed(metric, old)


def _renamed(metric: Metric, name: str) -> Metric:
    """Return the same samples under another name, with vLLM's label for the model."""
    twin = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        if sample.name.endswith("_created"):
            continue
        labels = {("model_name" if key == "model" else key): value for key, value in sample.labels.items()}
        twin.samples.append(Sample(name + sample.name.removeprefix(metric.name), labels, sample.value))
    return twin
