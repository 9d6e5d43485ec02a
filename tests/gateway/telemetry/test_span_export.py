from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gateway.runtime.background import Background
from gateway.runtime.backoff import FIRST_PAUSE_S
from gateway.telemetry.span_export import SPANS, RetriedExporter


class Receiver(SpanExporter):
    """An exporter that fails `num_failures` times."""

    def __init__(self, num_failures: int) -> None:
        self.num_failures, self.num_calls = num_failures, 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise OSError("disk full")
        return SpanExportResult.SUCCESS


def test_failing_exporter_is_retried_after_a_growing_pause() -> None:
    background, receiver, now = Background(), Receiver(2), 0.0
    exporter = RetriedExporter(receiver, background, clock=lambda: now)
    assert exporter.export([]) is SpanExportResult.FAILURE
    assert SPANS in background.problems
    assert exporter.export([]) is SpanExportResult.FAILURE and receiver.num_calls == 1
    now = FIRST_PAUSE_S
    assert exporter.export([]) is SpanExportResult.FAILURE and receiver.num_calls == 2
    now += 1.5 * FIRST_PAUSE_S
    assert exporter.export([]) is SpanExportResult.FAILURE and receiver.num_calls == 2
    now += FIRST_PAUSE_S
    assert exporter.export([]) is SpanExportResult.SUCCESS
    assert background.problems == {} and background.restarts == {SPANS: 2}
