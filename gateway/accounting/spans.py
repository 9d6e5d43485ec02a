"""OpenTelemetry spans of the GenAI conventions, made in one go when a request has ended: a server span and its `chat` child.

Until then a request carries nothing of tracing but its `traceparent` header. What the sampler drops costs a comparison.
"""

import random
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from gateway.accounting.entry import Entry

_SCOPE = InstrumentationScope("headway")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)

Attributes = dict[str, AttributeValue]


class SpanWriter(Protocol):
    def record(self, entry: Entry) -> None: ...

    def close(self) -> None: ...


class NoSpans:
    def record(self, entry: Entry) -> None:
        pass

    def close(self) -> None:
        pass


class Spans:
    """`sample` is the share of requests without a `traceparent` that are recorded; one with it is recorded as it says.

    The spans are made whole: a request is over when it is told of, and building them step by step takes ten times as long.
    """

    def __init__(self, processor: SpanProcessor, *, sample: float = 1.0, rng: random.Random | None = None) -> None:
        self._processor = processor
        self._resource = Resource.create({"service.name": "headway"})
        self._sample = sample
        self._rng = rng or random.Random()

    def close(self) -> None:
        self._processor.shutdown()

    def record(self, entry: Entry) -> None:
        """Once a request, at its end."""
        parent = read_traceparent(entry.traceparent) if entry.traceparent else None
        if parent:
            if not parent.trace_flags.sampled:
                return
        elif self._sample < 1.0 and self._rng.random() >= self._sample:
            return
        trace_id = parent.trace_id if parent else self._rng.getrandbits(128) or 1
        server = self._context(trace_id)
        end_ns = entry.started_ns + int(entry.duration_s * 1e9)
        if entry.decision:
            failed = Status(StatusCode.ERROR, entry.error_code) if entry.outcome == "failed" else _UNSET
            name = f"chat {entry.decision.chosen.model}"
            context = self._context(trace_id)
            self._emit(name, context, server, SpanKind.CLIENT, _chat_attributes(entry), failed, entry.started_ns, end_ns)
        failed = Status(StatusCode.ERROR, entry.error_code) if entry.status >= 500 else _UNSET
        name = f"POST {entry.route}"
        self._emit(name, server, parent, SpanKind.SERVER, _server_attributes(entry), failed, entry.started_ns, end_ns)

    def _context(self, trace_id: int) -> SpanContext:
        return SpanContext(trace_id, self._rng.getrandbits(64) or 1, is_remote=False, trace_flags=_SAMPLED)

    def _emit(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes,
        status: Status,
        start_ns: int,
        end_ns: int,
    ) -> None:
        span = ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            kind=kind,
            status=status,
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)


def _server_attributes(entry: Entry) -> Attributes:
    attributes: Attributes = {
        "http.request.method": "POST",
        "http.route": entry.route,
        "http.response.status_code": entry.status,
        "headway.tenant": entry.tenant,
        "headway.outcome": entry.outcome,
    }
    if entry.error_code:
        attributes["error.type"] = entry.error_code
    return attributes


def _chat_attributes(entry: Entry) -> Attributes:
    assert entry.decision
    chosen = entry.decision.chosen
    attributes: Attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "headway",
        "gen_ai.request.model": entry.asked,
        "gen_ai.response.model": chosen.model,
        "gen_ai.response.id": entry.request_id,
        "gen_ai.response.finish_reasons": (entry.finish_reason,),
        "gen_ai.conversation.id": entry.run,
        "gen_ai.usage.input_tokens": entry.prompt_tokens,
        "gen_ai.usage.output_tokens": entry.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": entry.cached_tokens,
        "gen_ai.usage.cost": entry.cost_usd,
        "headway.decision.id": entry.decision.id,
        "headway.decision.reason": entry.decision.reason,
        "headway.worker": chosen.worker,
        "headway.tier": chosen.tier,
        "headway.route": entry.decision.route,
        "headway.attempts": entry.num_attempts,
        "headway.queue_s": entry.queue_s,
        "headway.prefill_s": entry.prefill_s,
        "headway.decode_s": entry.decode_s,
        "headway.device_s": entry.device_s,
        "headway.saved_usd": entry.saved_usd,
        "headway.counterfactual_usd": entry.counterfactual_usd,
    }
    if entry.ttft_s is not None:
        attributes["headway.ttft_s"] = entry.ttft_s
    if entry.slo_met is not None:
        attributes["headway.slo_met"] = entry.slo_met
    return attributes


def read_traceparent(header: str) -> SpanContext | None:
    """W3C trace context, version 00 or later; None when it is no such header."""
    parts = header.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:4])
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


class LineExporter(SpanExporter):
    """One span a line, as JSON. The SDK's own is ten times slower, and its thread shares the interpreter with the gateway."""

    def __init__(self, path: Path) -> None:
        self._out = path.open("ab")
        self._encode = msgspec.json.Encoder().encode

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._out.write(b"".join(self._encode(_plain(span)) + b"\n" for span in spans))
        self._out.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
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
    """`where` is empty (no spans), `otlp` (endpoint from the OTEL_ variables), or `file:PATH` for JSON lines.

    Raises ValueError for anything else, and when the OTLP exporter is not installed.
    """
    if not where:
        return NoSpans()
    if where.startswith("file:"):
        return Spans(BatchSpanProcessor(LineExporter(Path(where.removeprefix("file:")))), sample=sample)
    if where != "otlp":
        raise ValueError(f"spans go to `otlp` or `file:PATH`, not to {where!r}")
    try:
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise ValueError("to send spans, install opentelemetry-exporter-otlp-proto-http") from error
    return Spans(BatchSpanProcessor(otlp.OTLPSpanExporter()), sample=sample)
