"""Destinations of spans: an OTLP receiver, standard error, or a file."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from gateway.runtime.background import Background
from gateway.runtime.backoff import Backoff
from gateway.runtime.private_files import make_private
from gateway.telemetry.tracing import AtExport, NoSpans, RequestSpans, SpanRecorder, SpanWriter, yield_gil

log = logging.getLogger("headway.spans")


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


SPANS = "spans"
"""Name of the exporter among the background tasks."""


class RetriedExporter(SpanExporter):
    """Exporter that survives the failures of another. After one it drops spans for a growing pause, and reports it."""

    def __init__(self, exporter: SpanExporter, background: Background, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._exporter, self._background, self._clock = exporter, background, clock
        self._backoff, self._resume_at = Backoff(), 0.0
        background.restarts.setdefault(SPANS, 0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._clock() < self._resume_at:
            return SpanExportResult.FAILURE
        try:
            result, problem = self._exporter.export(spans), "the receiver refused spans"
        except Exception as error:  # one of the places that catch everything: the exporter is foreign code
            result, problem = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            self._backoff.reset()
            self._background.problems.pop(SPANS, None)
            return result
        pause_s = self._backoff.take()
        log.error("spans are dropped for %g s: %s", pause_s, problem)
        self._background.restarts[SPANS] += 1
        self._background.problems[SPANS] = "spans cannot be exported, see the gateway's log"
        self._resume_at = self._clock() + pause_s
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def open_spans(where: str, *, sample: float, background: Background | None = None) -> SpanWriter:
    """Return the span writer for a setting.

    `where` is empty or `none` (no spans), `otlp` (endpoint, headers and timeout from the OTEL_EXPORTER_OTLP_ variables),
    `console` (standard error), or `file:PATH` for JSON lines.

    Raises ValueError for anything else, and when the OTLP exporter is not installed.
    """
    if where in ("", "none"):
        return NoSpans()
    exporter = RetriedExporter(_exporter(where), background or Background())
    return SpanRecorder(BatchSpanProcessor(exporter), sample=sample)


def _exporter(where: str) -> SpanExporter:
    if where == "console":
        return LineExporter(sys.stderr.buffer, close=False)
    if where.startswith("file:"):
        path = Path(where.removeprefix("file:"))
        if path.is_file() or not path.exists():  # not a device or pipe
            make_private(path)
        return LineExporter(path.open("ab"), close=True)
    if where != "otlp":
        raise ValueError(f"spans go to `otlp`, `console` or `file:PATH`, not to {where!r}")
    try:
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise ValueError("spans need the OTLP exporter, which is not installed: pip install 'headway[otlp]'") from error
    return AtExport(otlp.OTLPSpanExporter())
