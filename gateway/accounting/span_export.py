"""Where spans go: an OTLP receiver, standard error, or a file."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from gateway.accounting.spans import AtExport, NoSpans, Spans, SpanWriter


class LineExporter(SpanExporter):
    """One span a line, as JSON. The SDK's own is ten times slower, and its thread shares the interpreter with the gateway."""

    def __init__(self, out: BinaryIO, *, close: bool) -> None:
        self._out, self._close = out, close
        self._encode = msgspec.json.Encoder().encode

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._out.write(b"".join(self._encode(_plain(span)) + b"\n" for span in spans))
        self._out.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        if self._close:
            self._out.close()


def _plain(span: ReadableSpan) -> dict[str, object]:
    assert span.context
    return {
        "name": span.name,
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "kind": span.kind.name,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
    }


def open_spans(where: str, *, sample: float) -> SpanWriter:
    """`where` is empty or `none` (no spans), `otlp` (endpoint, headers and timeout from the OTEL_EXPORTER_OTLP_ variables),
    `console` (standard error), or `file:PATH` for JSON lines.

    Raises ValueError for anything else, and when the OTLP exporter is not installed.
    """
    if where in ("", "none"):
        return NoSpans()
    return Spans(BatchSpanProcessor(AtExport(_exporter(where))), sample=sample)


def _exporter(where: str) -> SpanExporter:
    if where == "console":
        return LineExporter(sys.stderr.buffer, close=False)
    if where.startswith("file:"):
        return LineExporter(Path(where.removeprefix("file:")).open("ab"), close=True)
    if where != "otlp":
        raise ValueError(f"spans go to `otlp`, `console` or `file:PATH`, not to {where!r}")
    try:
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise ValueError("to send spans, install the OTLP exporter: pip install 'headway[otlp]'") from error
    exporter: SpanExporter = otlp.OTLPSpanExporter()
    return exporter
