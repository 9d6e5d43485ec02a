"""A worker's metrics, read from the engine when asked for. The `vllm:` twins let existing boards work."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.engine import Engine


class WorkerMetrics(Collector):
    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        engine = self._engine
        running, waiting = len(engine.scheduler.running), len(engine.scheduler.waiting)
        pool, meter = engine.pool, engine.meter
        yield self._gauge("headway_worker_running_sequences", "Sequences in the running batch", running)
        yield self._gauge("headway_worker_waiting_sequences", "Sequences that wait for room", waiting)
        yield self._gauge("headway_worker_pages_free", "KV pages without contents", pool.num_free)
        yield self._gauge("headway_worker_pages_cached", "KV pages kept for reuse", pool.num_cached)
        yield self._gauge("headway_worker_pages_used", "KV pages that sequences hold", pool.num_used)
        yield self._counter("headway_worker_busy_seconds", "Time spent in steps", meter.busy_ns / 1e9)
        yield self._counter("headway_worker_idle_seconds", "Time spent waiting", meter.idle_ns / 1e9)
        yield self._counter("headway_worker_preemptions", "Sequences put back to make room", engine.scheduler.num_preemptions)
        yield self._counter("headway_worker_prompt_tokens", "Prompt tokens taken", engine.num_prompt_tokens)
        yield self._counter("headway_worker_cached_tokens", "Prompt tokens that were resident", engine.num_cached_tokens)
        yield self._counter("headway_worker_output_tokens", "Tokens generated", engine.num_output_tokens)
        yield self._gauge("vllm:num_requests_running", "Twin of headway_worker_running_sequences", running)
        yield self._gauge("vllm:num_requests_waiting", "Twin of headway_worker_waiting_sequences", waiting)
        yield self._gauge(
            "vllm:kv_cache_usage_perc", "Share of KV pages that sequences hold, 0 to 1", pool.num_used / pool.num_pages
        )

    def _gauge(self, name: str, documentation: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, documentation: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


def registry_for(engine: Engine, model: str) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(engine, model))
    return registry
