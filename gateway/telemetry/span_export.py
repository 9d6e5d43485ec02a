"""Destinations of spans: an OTLP receiver, standard error, or a file."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from gateway.telemetry.tracing import AtExport, NoSpans, RequestSpans, SpanRecorder, SpanWriter, yield_gil


class LineExporter(SpanExporter):
    """Exporter of one span a line, as JSON. The SDK's own takes ten times as long, in a thread that competes with the
    gateway."""

    def __init__(self, out: BinaryIO, *, close: bool) -> None:
        self._out, self._close = out, close
        self._encode = msgspec.json.Encoder().encode_lines

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for number, request in enumerate(spans):
            assert isinstance(request, RequestSpans)
            self._out.write(self._encode(request.lines()))
            yield_gil(number)
        self._out.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        if self._close:
            self._out.close()


def open_spans(where: str, *, sample: float) -> SpanWriter:
    """Return the span writer for a setting.

    `where` is empty or `none` (no spans), `otlp` (endpoint, headers and timeout from the OTEL_EXPORTER_OTLP_ variables),
    `console` (standard error), or `file:PATH` for JSON lines.

    Raises ValueError for anything else, and when the OTLP exporter is not installed.
    """
    if where in ("", "none"):
        return NoSpans()
    return SpanRecorder(BatchSpanProcessor(_exporter(where)), sample=sample)


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
        raise ValueError("spans need the OTLP exporter, which is not installed: pip install 'headway[otlp]'") from error
    return AtExport(otlp.OTLPSpanExporter())
