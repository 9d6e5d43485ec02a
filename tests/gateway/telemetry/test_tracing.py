from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.telemetry.record import RequestRecord
from gateway.telemetry.span_export import open_spans
from gateway.telemetry.trace_context import Trace, read_traceparent
from gateway.telemetry.tracing import MAX_BATCH, AtExport, NoSpans, SpanRecorder


def entry(trace: Trace | None, status: int = 200) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        tenant="t",
        run="run",
        chain="chain",
        asked="auto",
        outcome="ok" if status == 200 else "failed",
        status=status,
        stream=False,
        started_ns=1_000,
        duration_s=0.5,
        trace=trace,
    )


@pytest.mark.parametrize(
    "header", ["", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01"]
)
def test_malformed_trace_context_is_ignored(header: str) -> None:
    assert read_traceparent(header) is None


def test_a_callers_decision_not_to_sample_is_kept() -> None:
    exporter = InMemorySpanExporter()
    spans = SpanRecorder(SimpleSpanProcessor(AtExport(exporter)))
    parent = "00-" + "1" * 32 + "-" + "2" * 16
    spans.record(entry(spans.begin({"traceparent": f"{parent}-00"})))
    assert not exporter.get_finished_spans()
    trace = spans.begin({"traceparent": f"{parent}-01"})
    assert trace and trace.traceparent.startswith("00-" + "1" * 32)
    spans.record(entry(trace))
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "1" * 32
    assert (span.start_time, span.end_time) == (1_000, 500_001_000)


def test_sampling_share_of_zero_writes_no_spans() -> None:
    exporter = InMemorySpanExporter()
    spans = SpanRecorder(SimpleSpanProcessor(AtExport(exporter)), sample=0.0)
    spans.record(entry(spans.begin({})))
    assert not exporter.get_finished_spans()


def test_a_file_gets_one_line_of_json_a_span(tmp_path: Path) -> None:
    spans = open_spans(f"file:{tmp_path}/spans.jsonl", sample=1.0)
    spans.record(entry(spans.begin({}), status=503))
    spans.close()
    (line,) = (tmp_path / "spans.jsonl").read_bytes().splitlines()
    assert msgspec.json.decode(line)["status"] == "ERROR"


def test_tracing_is_off_without_a_destination() -> None:
    assert isinstance(open_spans("", sample=1.0), NoSpans)
    with pytest.raises(ValueError, match="otlp"):
        open_spans("nowhere", sample=1.0)


def test_an_exporter_gets_the_spans_of_many_requests_in_batches() -> None:
    batches: list[int] = []

    class Counting(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            batches.append(len(spans))
            return super().export(spans) if len(batches) != 2 else SpanExportResult.FAILURE

    class Keeping(SpanProcessor):
        def __init__(self) -> None:
            self.told: list[ReadableSpan] = []

        def on_end(self, span: ReadableSpan) -> None:
            self.told.append(span)

    processor = Keeping()
    spans = SpanRecorder(processor)
    for _ in range(MAX_BATCH + 10):
        spans.record(entry(spans.begin({})))
    assert len(processor.told) == MAX_BATCH + 10
    assert AtExport(Counting()).export(processor.told) is SpanExportResult.FAILURE
    assert batches == [MAX_BATCH, 10]
