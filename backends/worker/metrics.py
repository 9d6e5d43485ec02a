"""Metrics of a worker. Gauges and counters are read from the engine on scrape; a request is observed at its end.

The same metrics under vLLM's names, present and past, keep existing dashboards working.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.engine.engine import Engine
from backends.wire import Finished
from backends.worker.gpu import Gpu

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_Family = GaugeMetricFamily | CounterMetricFamily


class WorkerMetrics(Collector):
    def __init__(self, engine: Engine, model: str, gpu: Gpu | None) -> None:
        self._engine, self._model, self._gpu = engine, model, gpu

    def collect(self) -> Iterator[_Family]:
        engine = self._engine
        running, waiting = len(engine.scheduler.running), len(engine.scheduler.waiting)
        pool, busy_meter = engine.pool, engine.busy_meter
        yield self._gauge("headway_worker_running_sequences", "Sequences in the running batch", running)
        yield self._gauge("headway_worker_waiting_sequences", "Sequences that wait for room", waiting)
        yield self._gauge("headway_worker_pages_free", "KV pages without contents", pool.num_free)
        yield self._gauge("headway_worker_pages_cached", "KV pages kept for reuse", pool.num_cached)
        yield self._gauge("headway_worker_pages_used", "KV pages that sequences hold", pool.num_used)
        yield self._counter("headway_worker_busy_seconds", "Time spent in steps", busy_meter.busy_ns / 1e9)
        yield self._counter("headway_worker_idle_seconds", "Time spent waiting", busy_meter.idle_ns / 1e9)
        yield self._counter(
            "headway_worker_attributed_seconds", "Busy time charged to sequences", busy_meter.attributed_ns / 1e9
        )
        yield self._counter("headway_worker_steps", "Engine steps", busy_meter.num_steps)
        yield from self._twinned(engine)
        yield self._gauge("vllm:num_requests_running", "Twin of headway_worker_running_sequences", running)
        yield self._gauge("vllm:num_requests_waiting", "Twin of headway_worker_waiting_sequences", waiting)
        used = pool.num_used / pool.num_pages
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV pages that sequences hold, 0 to 1", used)
        yield self._gauge("vllm:gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc", used)
        if self._gpu:
            yield from self._device(self._gpu)

    def _twinned(self, engine: Engine) -> Iterator[_Family]:
        """Return the counters that vLLM also has, under all of its names."""
        preemptions = engine.scheduler.num_preemptions
        prompt, cached, output = engine.num_prompt_tokens, engine.num_cached_tokens, engine.num_output_tokens
        for names, documentation, value in (
            (("headway_worker_preemptions", "vllm:num_preemptions"), "Sequences put back to make room", preemptions),
            (("headway_worker_prompt_tokens", "vllm:prompt_tokens"), "Prompt tokens taken", prompt),
            (("headway_worker_cached_tokens",), "Prompt tokens that were resident", cached),
            (("headway_worker_output_tokens", "vllm:generation_tokens"), "Tokens generated", output),
            (("vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"), "Prompt tokens looked up", prompt),
            (("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"), "Prompt tokens that were resident", cached),
        ):
            for name in names:
                yield self._counter(name, documentation, value)

    def _device(self, gpu: Gpu) -> Iterator[_Family]:
        read = gpu.read()
        for name, documentation, value in (
            ("headway_gpu_busy_share", "Share of time in which a kernel ran, 0 to 1", read.busy_share),
            ("headway_gpu_memory_used_bytes", "Device memory in use, by everybody", read.memory_used_bytes),
            ("headway_gpu_memory_bytes", "Device memory", read.memory_bytes),
            ("headway_gpu_power_watts", "Power drawn", read.power_watts),
        ):
            if value is not None:
                yield self._gauge(name, documentation, value)

    def _gauge(self, name: str, documentation: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, documentation: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


class Ends:
    """Observes each `Finished` that ran, on the engine's thread: about 10 µs a request, nothing for a token."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        def bound(name: str, documentation: str, buckets: tuple[float, ...]) -> Callable[[float], None]:
            observe: Callable[[float], None] = (
                Histogram(name, documentation, ["model_name"], buckets=buckets, registry=registry).labels(model).observe
            )
            return observe

        self._queue = [
            bound("headway_worker_queue_seconds", "Waiting in the worker", SECONDS),
            bound("vllm:request_queue_time_seconds", "Twin of headway_worker_queue_seconds", SECONDS),
        ]
        self._prefill = [
            bound("headway_worker_prefill_seconds", "From the first step to the first token", SECONDS),
            bound("vllm:request_prefill_time_seconds", "Twin of headway_worker_prefill_seconds", SECONDS),
        ]
        self._decode = [
            bound("headway_worker_decode_seconds", "From the first token to the end", SECONDS),
            bound("vllm:request_decode_time_seconds", "Twin of headway_worker_decode_seconds", SECONDS),
        ]
        self._first = bound("vllm:time_to_first_token_seconds", "From the submit to the first token", SECONDS)
        self._gap = [
            bound("vllm:inter_token_latency_seconds", "A token after the first", SECONDS),
            bound("vllm:time_per_output_token_seconds", "Old name of vllm:inter_token_latency_seconds", SECONDS),
        ]
        self._whole = bound("vllm:e2e_request_latency_seconds", "From the submit to the end", SECONDS)
        self._prompt = bound("vllm:request_prompt_tokens", "Prompt tokens a request", TOKENS)
        self._output = bound("vllm:request_generation_tokens", "Output tokens a request", TOKENS)
        self._batch = bound("headway_worker_mean_batch", "Sequences in the steps of a request, on average", BATCH)

    def __call__(self, finished: Finished) -> None:
        first = finished.queue_s + finished.prefill_s
        _all(self._queue, finished.queue_s)
        _all(self._prefill, finished.prefill_s)
        _all(self._decode, finished.decode_s)
        self._whole(first + finished.decode_s)
        self._prompt(finished.num_prompt_tokens)
        self._output(finished.num_output_tokens)
        self._batch(finished.mean_batch)
        if finished.num_output_tokens:
            self._first(first)
        if finished.num_output_tokens > 1:
            _all(self._gap, finished.decode_s / (finished.num_output_tokens - 1))


def _all(observers: list[Callable[[float], None]], value: float) -> None:
    for observe in observers:
        observe(value)


def registry_for(engine: Engine, model: str, gpu: Gpu | None = None, *, step: str = "") -> CollectorRegistry:
    """Register the metrics of one engine and observe its ends from now on. `step` names the code that runs its steps."""
    registry = CollectorRegistry()
    labels = {"model": model, "step": step}
    Gauge("headway_worker_info", "1, with the code that runs its steps", labels, registry=registry).labels(**labels).set(1)
    registry.register(WorkerMetrics(engine, model, gpu))
    engine.on_finished = Ends(registry, model)
    return registry
