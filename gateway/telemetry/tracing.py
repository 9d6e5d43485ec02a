"""OpenTelemetry spans of the GenAI conventions. The exporting thread builds all spans of a request after its end: in a tight
loop they cost a third of what they cost between two requests.

    POST /v1/chat/completions          the server's
    └── chat MODEL                     tokens, cost and the decision, only here
        ├── headway.attempt            one for each replaced attempt, with its own cost
        ├── headway.queue              wait in the gateway
        ├── headway.prefill
        └── headway.decode

Until its end a request carries three ids. A request dropped by the sampler costs one comparison. No span is per token.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import AttributeValue

from gateway.routing.decision import Decision
from gateway.telemetry.record import LostAttempt, RequestRecord
from gateway.telemetry.trace_context import Trace, read_traceparent, read_tracestate

MAX_BATCH = 512
"""Spans of one export, as in the SDK."""
REQUESTS_PER_YIELD = 16
"""Requests whose spans are built before the thread releases the GIL."""
MIN_QUEUE_S = 0.001
"""Seconds below which a wait gets no span, only an attribute."""

_SCOPE = InstrumentationScope("headway")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SOME = SpanContext(1, 1, is_remote=False, trace_flags=_SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_KINDS = {kind: kind.name for kind in SpanKind}
_FINISH = {"stop": "stop", "length": "length", "tool_call": "tool_call"}
_CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions")
_OPERATION = {"/v1/completions": "text_completion"}

Attributes = dict[str, AttributeValue]


class SpanWriter(Protocol):
    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        """Return the span ids of an arriving request, or None when it is not recorded. Call once a request."""

    def record(self, record: RequestRecord) -> None:
        """Record an ended request, exactly once. Does nothing without a trace."""

    def close(self) -> None: ...


class NoSpans:
    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        return None

    def record(self, record: RequestRecord) -> None:
        pass

    def close(self) -> None:
        pass


class SpanRecorder:
    """Span writer for an SDK processor. `sample` is the share of requests without a `traceparent` that are recorded; one with
    it follows its sampled flag.

    Spans are built whole after a request's end: building them step by step takes ten times as long. The processor gets one
    RequestSpans a request, which its exporter must handle. AtExport does so for any exporter of the SDK.
    """

    def __init__(self, processor: SpanProcessor, *, sample: float = 1.0, rng: random.Random | None = None) -> None:
        self._processor = processor
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override this name.
        self._resource = Resource({"service.name": "headway"}).merge(OTELResourceDetector().detect())
        self._sample = sample
        self._rng = rng or random.Random()

    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        header = headers.get("traceparent", "")
        parent = read_traceparent(header) if header else None
        if parent:
            if not parent.sampled:
                return None
            state = read_tracestate(headers.get("tracestate", ""))
            return Trace(parent.trace_id, self.new_id(), self.new_id(), parent.span_id, state)
        if self._sample < 1.0 and self._rng.random() >= self._sample:
            return None
        return Trace(self._rng.getrandbits(128) or 1, self.new_id(), self.new_id())

    def record(self, record: RequestRecord) -> None:
        if record.trace:
            self._processor.on_end(RequestSpans(self, record, record.trace))

    def close(self) -> None:
        self._processor.shutdown()

    def new_id(self) -> int:
        return self._rng.getrandbits(64) or 1

    @property
    def resource(self) -> Resource:
        return self._resource


class SpanLine(msgspec.Struct, gc=False):
    """One span in the form of a JSON line."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    kind: str
    start_ns: int
    end_ns: int
    status: str
    attributes: Mapping[str, AttributeValue]


class _Span(NamedTuple):
    """One span, independent of the output format."""

    name: str
    id: int
    parent: int | None
    kind: SpanKind
    attributes: Attributes
    start_ns: int
    end_ns: int
    failed: str | None = None
    """Error code of a failed span, None for a good one."""


class RequestSpans(ReadableSpan):
    """An ended request in the exporter's queue, in place of its spans."""

    def __init__(self, spans: SpanRecorder, record: RequestRecord, trace: Trace) -> None:
        self._context = _SOME
        self._parts = spans, record, trace

    def spans(self) -> list[ReadableSpan]:
        """Build the spans for an exporter of the SDK."""
        spans, record, trace = self._parts
        state = TraceState.from_header([trace.state]) if trace.state else None

        def context(id: int, *, is_remote: bool) -> SpanContext:
            return SpanContext(trace.trace_id, id, is_remote, _SAMPLED, None if is_remote else state)

        return [
            ReadableSpan(
                made.name,
                context(made.id, is_remote=False),
                None if made.parent is None else context(made.parent, is_remote=made.parent == trace.parent_id),
                spans.resource,
                made.attributes,
                kind=made.kind,
                status=_UNSET if made.failed is None else Status(StatusCode.ERROR, made.failed),
                start_time=made.start_ns,
                end_time=made.end_ns,
                instrumentation_scope=_SCOPE,
            )
            for made in _SpanBuilder(spans, record, trace).build()
        ]

    def lines(self) -> list[SpanLine]:
        """Build JSON lines without the SDK's objects, which would take twice as long as all the rest."""
        trace = self._parts[-1]
        trace_id = f"{trace.trace_id:032x}"
        return [
            SpanLine(
                made.name,
                trace_id,
                f"{made.id:016x}",
                None if made.parent is None else f"{made.parent:016x}",
                _KINDS[made.kind],
                made.start_ns,
                made.end_ns,
                "UNSET" if made.failed is None else "ERROR",
                made.attributes,
            )
            for made in _SpanBuilder(*self._parts).build()
        ]


class AtExport(SpanExporter):
    """Exporter that builds the spans of each request and passes them to another exporter."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        made: list[ReadableSpan] = []
        for number, request in enumerate(spans):
            assert isinstance(request, RequestSpans)
            made += request.spans()
            yield_gil(number)
        results = [self._exporter.export(made[at : at + MAX_BATCH]) for at in range(0, len(made), MAX_BATCH)]
        return next((result for result in results if result is not SpanExportResult.SUCCESS), SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def yield_gil(number: int) -> None:
    """Release the GIL after every REQUESTS_PER_YIELD requests of a batch; `number` is the request's index."""
    if number % REQUESTS_PER_YIELD == REQUESTS_PER_YIELD - 1:
        time.sleep(0)


class _SpanBuilder:
    """Builder of the spans of one request, children first, in the order of their ends."""

    __slots__ = ("_made", "_record", "_spans", "_trace")

    def __init__(self, spans: SpanRecorder, record: RequestRecord, trace: Trace) -> None:
        self._spans, self._record, self._trace = spans, record, trace
        self._made: list[_Span] = []

    def build(self) -> list[_Span]:
        record, trace = self._record, self._trace
        start_ns, end_ns = record.started_ns, self._at(record.duration_s)
        if record.decision:
            self._stages()
            failed = record.error_code if record.outcome == "failed" else None
            name = f"{_OPERATION.get(record.route, 'chat')} {record.decision.chosen.model}"
            attributes = _chat_attributes(record)
            self._made.append(
                _Span(name, trace.chat_id, trace.server_id, SpanKind.CLIENT, attributes, start_ns, end_ns, failed)
            )
        failed = record.error_code if record.status >= 500 else None
        attributes, name = _server_attributes(record), f"POST {record.route}"
        self._made.append(_Span(name, trace.server_id, trace.parent_id, SpanKind.SERVER, attributes, start_ns, end_ns, failed))
        return self._made

    def _stages(self) -> None:
        record = self._record
        for lost in record.lost:
            self._child("headway.attempt", lost.started_s, lost.ended_s, _attempt_attributes(lost))
        if record.submitted_s - record.placed_s >= MIN_QUEUE_S:
            self._child("headway.queue", record.placed_s, record.submitted_s, {})
        began = record.submitted_s + record.worker_queue_s
        if record.prefill_s:
            first = record.ttft_s if record.ttft_s is not None else began + record.prefill_s
            uncached = record.prompt_tokens - record.cached_tokens
            self._child("headway.prefill", began, first, {"headway.uncached_tokens": uncached})
        if record.ttft_s is not None and record.output_tokens > 1:
            steps: Attributes = {"headway.num_steps": record.num_steps, "headway.mean_batch": record.mean_batch}
            self._child("headway.decode", record.ttft_s, record.duration_s, steps)

    def _child(self, name: str, start_s: float, end_s: float, attributes: Attributes) -> None:
        start_ns, end_ns = self._at(start_s), self._at(max(start_s, end_s))
        id, parent = self._spans.new_id(), self._trace.chat_id
        self._made.append(_Span(name, id, parent, SpanKind.INTERNAL, attributes, start_ns, end_ns))

    def _at(self, seconds: float) -> int:
        return self._record.started_ns + int(seconds * 1e9)


def _server_attributes(record: RequestRecord) -> Attributes:
    attributes: Attributes = {
        "http.request.method": "POST",
        "http.route": record.route,
        "url.path": record.route,
        "url.scheme": "http",
        "http.response.status_code": record.status,
        "headway.tenant": record.tenant,
        "headway.outcome": record.outcome,
    }
    if record.run:
        attributes["session.id"] = record.run
    if record.error_code:
        attributes["error.type"] = record.error_code
    return attributes


def _attempt_attributes(lost: LostAttempt) -> Attributes:
    """Return a replaced attempt's attributes. `gen_ai.usage` is on the answering attempt only."""
    attributes: Attributes = {
        "headway.worker": lost.worker,
        "headway.model": lost.model,
        "headway.attempt.why": lost.why,
        "headway.device_s": lost.device_s,
        "headway.cost_usd": lost.usd,
    }
    if lost.confidence is not None:
        attributes["headway.attempt.confidence"] = lost.confidence
    return attributes


def _chat_attributes(record: RequestRecord) -> Attributes:
    assert record.decision
    chosen = record.decision.chosen
    attributes: Attributes = {
        "gen_ai.operation.name": _OPERATION.get(record.route, "chat"),
        "gen_ai.provider.name": "headway",
        "gen_ai.request.model": record.asked,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.request.temperature": record.temperature,
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.model": chosen.model,
        "gen_ai.response.id": record.request_id,
        "gen_ai.response.finish_reasons": (_FINISH.get(record.finish_reason, "error"),),
        "gen_ai.conversation.id": record.run,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.cost": record.cost_usd,
        "session.id": record.run,
        **_headway_attributes(record, record.decision),
    }
    if record.ttft_s is not None and record.stream:
        attributes["gen_ai.response.time_to_first_chunk"] = record.ttft_s
    if record.error_code:
        attributes["error.type"] = record.error_code
    if content := record.content:
        texts = (content.system, content.asked, content.answered, content.tools)
        attributes |= {name: text for name, text in zip(_CONTENT, texts, strict=True) if text}
    return attributes


def _headway_attributes(record: RequestRecord, decision: Decision) -> Attributes:
    chosen = decision.chosen
    attributes: Attributes = {
        "headway.chain": record.chain,
        "headway.decision.id": decision.id,
        "headway.decision.reason": decision.reason,
        "headway.decision.rejected": sum(decision.rejected_by_reason.values()),
        "headway.quality": chosen.quality,
        "headway.worker": chosen.worker,
        "headway.tier": chosen.tier,
        "headway.route": decision.route,
        "headway.attempts": record.num_attempts,
        "headway.queue_s": record.queue_s,
        "headway.worker_queue_s": record.worker_queue_s,
        "headway.prefill_s": record.prefill_s,
        "headway.decode_s": record.decode_s,
        "headway.device_s": record.device_s,
        "headway.num_steps": record.num_steps,
        "headway.mean_batch": record.mean_batch,
        "headway.saved_usd": record.saved_usd,
        "headway.counterfactual_usd": record.counterfactual_usd,
        "headway.slo": record.slo,
    }
    if record.ttft_s is not None:
        attributes["headway.ttft_s"] = record.ttft_s
    if record.slo_met is not None:
        attributes["headway.slo_met"] = record.slo_met
    return attributes
