"""OpenTelemetry spans of the GenAI conventions, made in one go when a request has ended, by the thread that exports them: in a
tight loop they take a third of what they take between two requests.

    POST /v1/chat/completions          the server's
    └── chat MODEL                     tokens, cost and the decision: here and nowhere else
        ├── headway.attempt            one for every attempt that another replaced, with its own cost
        ├── headway.queue              where it waited
        ├── headway.prefill
        └── headway.decode

Until the end a request carries three ids. What the sampler drops costs a comparison. No span is per token.
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

from gateway.telemetry.record import LostAttempt, RequestRecord
from gateway.telemetry.trace_context import Trace, read_traceparent, read_tracestate

MAX_BATCH = 512
"""Spans given to an exporter at a time, as the SDK does."""
AT_A_TIME = 16
"""Requests whose spans are made before the other threads may go on."""
MIN_QUEUE_S = 0.001
"""Shorter waits are an attribute only."""

_SCOPE = InstrumentationScope("headway")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SOME = SpanContext(1, 1, is_remote=False, trace_flags=_SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_KINDS = {kind: kind.name for kind in SpanKind}
_FINISH = {"stop": "stop", "length": "length", "tool_call": "tool_call"}
_OPERATION = {"/v1/completions": "text_completion"}

Attributes = dict[str, AttributeValue]


class SpanWriter(Protocol):
    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        """Once a request, when it comes: the ids of its spans, or None when it is not recorded."""

    def record(self, entry: RequestRecord) -> None:
        """Once a request, at its end. Without a trace there is nothing to do."""

    def close(self) -> None: ...


class NoSpans:
    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        return None

    def record(self, entry: RequestRecord) -> None:
        pass

    def close(self) -> None:
        pass


class SpanRecorder:
    """`sample` is the share of requests without a `traceparent` that are recorded; one with it is recorded as it says.

    The spans are made whole: a request is over when it is told of, and building them step by step takes ten times as long. The
    processor gets one thing a request, a Told, which its exporter has to know: an AtExport around one of the SDK does.
    """

    def __init__(self, processor: SpanProcessor, *, sample: float = 1.0, rng: random.Random | None = None) -> None:
        self._processor = processor
        # Named here, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise.
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

    def record(self, entry: RequestRecord) -> None:
        if entry.trace:
            self._processor.on_end(RequestSpans(self, entry, entry.trace))

    def close(self) -> None:
        self._processor.shutdown()

    def new_id(self) -> int:
        return self._rng.getrandbits(64) or 1

    @property
    def resource(self) -> Resource:
        return self._resource


class SpanLine(msgspec.Struct, gc=False):
    """One span, as a line of JSON has it."""

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
    """One span, in nobody's form yet."""

    name: str
    id: int
    parent: int | None
    kind: SpanKind
    attributes: Attributes
    start_ns: int
    end_ns: int
    failed: str | None = None
    """Why, where it did."""


class RequestSpans(ReadableSpan):
    """A request on its way to the exporter, in the place of its spans."""

    def __init__(self, spans: SpanRecorder, entry: RequestRecord, trace: Trace) -> None:
        self._context = _SOME
        self._told = spans, entry, trace

    def spans(self) -> list[ReadableSpan]:
        """For an exporter of the SDK."""
        spans, entry, trace = self._told
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
            for made in _SpanBuilder(spans, entry, trace).tell()
        ]

    def lines(self) -> list[SpanLine]:
        """Without the SDK's objects, which take twice as long as all else."""
        trace = self._told[-1]
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
            for made in _SpanBuilder(*self._told).tell()
        ]


class AtExport(SpanExporter):
    """Makes the spans of each request and hands them to another exporter."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        made: list[ReadableSpan] = []
        for number, told in enumerate(spans):
            assert isinstance(told, RequestSpans)
            made += told.spans()
            let_others(number)
        results = [self._exporter.export(made[at : at + MAX_BATCH]) for at in range(0, len(made), MAX_BATCH)]
        return next((result for result in results if result is not SpanExportResult.SUCCESS), SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def let_others(number: int) -> None:
    """After so many requests of a batch: other threads may go on now and then."""
    if number % AT_A_TIME == AT_A_TIME - 1:
        time.sleep(0)


class _SpanBuilder:
    """The spans of one request, children first, as if each had ended in its time."""

    __slots__ = ("_entry", "_made", "_spans", "_trace")

    def __init__(self, spans: SpanRecorder, entry: RequestRecord, trace: Trace) -> None:
        self._spans, self._entry, self._trace = spans, entry, trace
        self._made: list[_Span] = []

    def tell(self) -> list[_Span]:
        entry, trace = self._entry, self._trace
        start_ns, end_ns = entry.started_ns, self._at(entry.duration_s)
        if entry.decision:
            self._stages()
            failed = entry.error_code if entry.outcome == "failed" else None
            name = f"{_OPERATION.get(entry.route, 'chat')} {entry.decision.chosen.model}"
            attributes = _chat_attributes(entry)
            self._made.append(
                _Span(name, trace.chat_id, trace.server_id, SpanKind.CLIENT, attributes, start_ns, end_ns, failed)
            )
        failed = entry.error_code if entry.status >= 500 else None
        attributes, name = _server_attributes(entry), f"POST {entry.route}"
        self._made.append(_Span(name, trace.server_id, trace.parent_id, SpanKind.SERVER, attributes, start_ns, end_ns, failed))
        return self._made

    def _stages(self) -> None:
        entry = self._entry
        for lost in entry.lost:
            self._child("headway.attempt", lost.started_s, lost.ended_s, _attempt_attributes(lost))
        if entry.submitted_s - entry.placed_s >= MIN_QUEUE_S:
            self._child("headway.queue", entry.placed_s, entry.submitted_s, {})
        began = entry.submitted_s + entry.worker_queue_s
        if entry.prefill_s:
            first = entry.ttft_s if entry.ttft_s is not None else began + entry.prefill_s
            uncached = entry.prompt_tokens - entry.cached_tokens
            self._child("headway.prefill", began, first, {"headway.uncached_tokens": uncached})
        if entry.ttft_s is not None and entry.output_tokens > 1:
            steps: Attributes = {"headway.num_steps": entry.num_steps, "headway.mean_batch": entry.mean_batch}
            self._child("headway.decode", entry.ttft_s, entry.duration_s, steps)

    def _child(self, name: str, start_s: float, end_s: float, attributes: Attributes) -> None:
        start_ns, end_ns = self._at(start_s), self._at(max(start_s, end_s))
        id, parent = self._spans.new_id(), self._trace.chat_id
        self._made.append(_Span(name, id, parent, SpanKind.INTERNAL, attributes, start_ns, end_ns))

    def _at(self, seconds: float) -> int:
        return self._entry.started_ns + int(seconds * 1e9)


def _server_attributes(entry: RequestRecord) -> Attributes:
    attributes: Attributes = {
        "http.request.method": "POST",
        "http.route": entry.route,
        "url.path": entry.route,
        "url.scheme": "http",
        "http.response.status_code": entry.status,
        "headway.tenant": entry.tenant,
        "headway.outcome": entry.outcome,
    }
    if entry.run:
        attributes["session.id"] = entry.run
    if entry.error_code:
        attributes["error.type"] = entry.error_code
    return attributes


def _attempt_attributes(lost: LostAttempt) -> Attributes:
    """Cost of its own; no `gen_ai.usage`, which is on the answering attempt alone."""
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


def _chat_attributes(entry: RequestRecord) -> Attributes:
    assert entry.decision
    chosen = entry.decision.chosen
    attributes: Attributes = {
        "gen_ai.operation.name": _OPERATION.get(entry.route, "chat"),
        "gen_ai.provider.name": "headway",
        "gen_ai.request.model": entry.asked,
        "gen_ai.request.max_tokens": entry.max_tokens,
        "gen_ai.request.temperature": entry.temperature,
        "gen_ai.request.stream": entry.stream,
        "gen_ai.response.model": chosen.model,
        "gen_ai.response.id": entry.request_id,
        "gen_ai.response.finish_reasons": (_FINISH.get(entry.finish_reason, "error"),),
        "gen_ai.conversation.id": entry.run,
        "gen_ai.usage.input_tokens": entry.prompt_tokens,
        "gen_ai.usage.output_tokens": entry.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": entry.cached_tokens,
        "gen_ai.usage.cost": entry.cost_usd,
        "session.id": entry.run,
        "headway.chain": entry.chain,
        "headway.decision.id": entry.decision.id,
        "headway.decision.reason": entry.decision.reason,
        "headway.decision.rejected": sum(entry.decision.rejected_by_reason.values()),
        "headway.quality": chosen.quality,
        "headway.worker": chosen.worker,
        "headway.tier": chosen.tier,
        "headway.route": entry.decision.route,
        "headway.attempts": entry.num_attempts,
        "headway.queue_s": entry.queue_s,
        "headway.worker_queue_s": entry.worker_queue_s,
        "headway.prefill_s": entry.prefill_s,
        "headway.decode_s": entry.decode_s,
        "headway.device_s": entry.device_s,
        "headway.num_steps": entry.num_steps,
        "headway.mean_batch": entry.mean_batch,
        "headway.saved_usd": entry.saved_usd,
        "headway.counterfactual_usd": entry.counterfactual_usd,
        "headway.slo": entry.slo,
    }
    if entry.ttft_s is not None:
        attributes["headway.ttft_s"] = entry.ttft_s
        if entry.stream:
            attributes["gen_ai.response.time_to_first_chunk"] = entry.ttft_s
    if entry.slo_met is not None:
        attributes["headway.slo_met"] = entry.slo_met
    if entry.error_code:
        attributes["error.type"] = entry.error_code
    if content := entry.content:
        said = (content.system, content.asked, content.answered, content.tools)
        attributes |= {name: text for name, text in zip(_CONTENT, said, strict=True) if text}
    return attributes


_CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions")
