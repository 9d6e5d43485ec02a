"""What a worker tells Prometheus of its engine, of ended requests and of its GPU."""

import random
from array import array

import pytest
from prometheus_client import CollectorRegistry

from backends.engine.engine import Engine
from backends.wire import Finished, Sampling, Submit
from backends.worker import gpu
from backends.worker.metrics import Ends, registry_for
from tests.backends.fakes import FakeRunner, LetterDecoder, Ticks, limits

LABELS = {"model_name": "fake"}


class _Library:
    """NVML that knows one GPU, and not its power."""

    def __init__(self) -> None:
        self.CDLL = lambda name: self

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
        return 0 if uuid == b"GPU-1" else 6

    def nvmlDeviceGetUtilizationRates(self, handle: object, answer: object) -> int:
        answer._obj.gpu = 42  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: object, answer: object) -> int:
        answer._obj.total, answer._obj.used = 100, 25  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: object, answer: object) -> int:
        return 3


def engine() -> Engine:
    of = limits()
    return Engine(FakeRunner(of), LetterDecoder(), of, clock_ns=Ticks(), rng=random.Random(0))


def test_requests_are_counted_once_under_both_metric_names() -> None:
    worked = engine()
    registry = registry_for(worked, "fake")
    for number in range(3):
        prompt = array("I", range(1, 20)).tobytes()
        worked.submit("me", Submit(request=number, prompt=prompt, sampling=Sampling(max_tokens=5, ignore_eos=True)))
        while worked.has_work:
            worked.step()
    for name, value in {
        "vllm:generation_tokens_total": 15,
        "vllm:prompt_tokens_total": 57,
        "vllm:prefix_cache_queries_total": 57,
        "vllm:gpu_prefix_cache_hits_total": 32,
        "vllm:e2e_request_latency_seconds_count": 3,
        "vllm:inter_token_latency_seconds_count": 3,
        "vllm:time_per_output_token_seconds_count": 3,
        "headway_worker_queue_seconds_count": 3,
        "vllm:gpu_cache_usage_perc": 0,
    }.items():
        assert registry.get_sample_value(name, LABELS) == value, name
    busy = registry.get_sample_value("headway_worker_busy_seconds_total", LABELS)
    assert busy == registry.get_sample_value("headway_worker_attributed_seconds_total", LABELS)
    assert registry.get_sample_value("headway_worker_steps_total", LABELS) == worked.busy_meter.num_steps > 0


def test_request_without_a_token_has_no_ttft() -> None:
    registry = CollectorRegistry()
    Ends(registry, "fake")(Finished(request=1, reason="abort", queue_s=1.0))
    assert registry.get_sample_value("vllm:time_to_first_token_seconds_count", LABELS) == 0
    assert registry.get_sample_value("headway_worker_queue_seconds_sum", LABELS) == 1.0


def test_gpu_metrics_hold_the_values_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ctypes", _Ctypes(_Library()))
    assert gpu.open_gpu("GPU-2") is None
    opened = gpu.open_gpu("GPU-1")
    assert opened and opened.read() == gpu.GpuSample(0.42, 25, 100, None)
    registry = registry_for(engine(), "fake", opened)
    assert registry.get_sample_value("headway_gpu_busy_share", LABELS) == 0.42
    assert registry.get_sample_value("headway_gpu_power_watts", LABELS) is None


def test_without_nvml_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LIBRARY", "libthere-is-none.so")
    assert gpu.open_gpu("GPU-1") is None


class _Ctypes:
    """The real module but for the library that it opens."""

    def __init__(self, library: _Library) -> None:
        self.CDLL = library.CDLL

    def __getattr__(self, name: str) -> object:
        import ctypes

        return getattr(ctypes, name)
