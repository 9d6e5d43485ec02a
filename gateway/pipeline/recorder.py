"""Adds up the costs of a request and records them exactly once: in its run, the metrics, the spans and the ledger."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from backends.wire import Finished
from gateway.errors import HeadwayError
from gateway.fleet.fleet import Fleet
from gateway.ledger.ledger import Ledger
from gateway.ledger.policy_record import policy_row
from gateway.ledger.rows import DecisionRow, HoldRow, RequestRow, Row, RunRow
from gateway.metering.budgets import NOTHING, Amount, Budgets, Payers, Reservation
from gateway.metering.cost import charge
from gateway.metering.rate_limits import RateLimiter
from gateway.pipeline.active_request import ActiveRequest, RequestContext
from gateway.policy.schema import Policy
from gateway.runs.cache_miss import report
from gateway.runs.identity import public_id
from gateway.runs.registry import Run, RunRegistry
from gateway.scheduling.latency_model import OutputLengths
from gateway.telemetry.content import content_of
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import Outcome, RequestRecord
from gateway.telemetry.tracing import SpanWriter


class RequestRecorder:
    """`capture` records prompts and answers in the spans."""

    def __init__(
        self,
        fleet: Fleet,
        runs: RunRegistry,
        lengths: OutputLengths,
        metrics: Metrics,
        spans: SpanWriter,
        ledger: Ledger,
        budgets: Budgets,
        rates: RateLimiter,
        *,
        capture: bool = False,
    ) -> None:
        self.fleet, self.runs, self.lengths = fleet, runs, lengths
        self.metrics, self.spans, self.ledger = metrics, spans, ledger
        self.budgets, self.rates = budgets, rates
        self._capture = capture
        self._top = fleet.top_worker()
        self._epoch = time.time() - time.monotonic()

    def _unix(self, monotonic_s: float) -> float:
        return self._epoch + monotonic_s

    def begin(self, active: ActiveRequest) -> None:
        """Make the ids of the request's spans, which go to the worker with the submission."""
        active.trace = self.spans.begin(active.context.headers)
        active.pending.traceparent = active.trace.traceparent if active.trace else active.context.headers.get("traceparent", "")

    def record_reservation(
        self, request: str, route: str, payers: Payers, reservations: Sequence[Reservation], at: float
    ) -> None:
        """Record reservations before dispatch, so that a restart after a crash knows what may have been spent."""
        together = NOTHING
        for reservation in reservations:
            together = together.plus(reservation.amount)
        self.ledger.record(
            HoldRow(
                request=request,
                at=at,
                route=route,
                tenant=payers.tenant,
                key_id=payers.key,
                run=payers.run,
                usd=together.usd,
                tokens=together.tokens,
                turns=together.turns,
            )
        )

    def attempt_ended(self, active: ActiveRequest, finished: Finished) -> None:
        """Charge one attempt, before its end is delivered."""
        decision = active.pending.decision
        assert decision
        worker = decision.chosen.worker
        paid = charge(
            finished,
            self.fleet.tariff(worker),
            large=self.fleet.tariff(self._top) if self._top else None,
            on_large=decision.chosen.tier == self.fleet.policy.tiers[-1],
        )
        active.finished, active.charge = finished, paid
        if active.stream:
            active.cut += active.stream.cut
        active.device_s += paid.device_s
        active.cost_usd += paid.usd
        active.saved_usd += paid.saved_by_cache_usd
        # The counterfactual counts the answering attempt alone: on the large tier there is no other attempt.
        all_large_usd, active.counterfactual_usd = paid.all_large_usd - active.counterfactual_usd, paid.all_large_usd
        self.runs.charged(
            active.identity.run,
            device_s=paid.device_s,
            usd=paid.usd,
            saved_usd=paid.saved_by_cache_usd,
            all_large_usd=all_large_usd,
            prompt_tokens=finished.num_prompt_tokens,
            cached_tokens=finished.num_cached_tokens,
            output_tokens=finished.num_output_tokens,
        )
        if finished.reason in ("stop", "length") and not active.cut:
            self._learn(active, finished, worker)

    def _learn(self, active: ActiveRequest, finished: Finished, worker: str) -> None:
        client = self.fleet.clients.get(worker)
        hello = client.hello if client else None
        if hello:
            page_hashes = active.pending.prompts[worker].page_hashes
            self.fleet.repair(worker, page_hashes, finished.num_cached_tokens, since=active.pending.kv_index_sequence)
            if not active.is_extra:
                active.chain.reports.append(
                    report(
                        active.pending.prompts[worker].change,
                        turn=active.chain.turns,
                        worker=worker,
                        previous_worker=active.previous_worker,
                        prompt_tokens=finished.num_prompt_tokens,
                        cached_tokens=finished.num_cached_tokens,
                        page_size=hello.page_size,
                        normalized=active.request.normalized,
                    )
                )
        self.lengths.observe(active.pending.route, finished.num_output_tokens)

    def close(self, active: ActiveRequest, outcome: Outcome, status: int, error_code: str = "") -> None:
        """Record the end of a request that was prepared."""
        assert not active.closed, "a request was accounted twice"
        active.closed = True
        record = _entry(active, outcome, status, error_code, time.monotonic())
        self._settle(active, record)
        if self._capture and record.trace:
            record = msgspec.structs.replace(
                record, content=content_of(active.request, active.answer, record.finish_reason or error_code)
            )
        self.metrics.record(record)
        self.spans.record(record)
        self.ledger.record(_RowsOf(record))
        if run := self.runs.closed(active.run, final=active.identity.final, now=time.monotonic()):
            self.run_ended(run)

    def _settle(self, active: ActiveRequest, record: RequestRecord) -> None:
        """Settle reservations. They are released in full if the request never reached a worker."""
        tokens = record.prompt_tokens + record.output_tokens
        if active.context.rate_limit_pass is not None:
            self.rates.settle(active.context.rate_limit_pass, active.reserved_tokens, tokens, time.monotonic())
        if active.reservation is not None:
            turns = 1 if record.decision and not active.is_extra else 0
            self.budgets.settle(active.reservation, Amount(record.cost_usd, tokens, turns))

    def run_ended(self, run: Run) -> None:
        """Record the sums of a run that is over, and let its pages be evicted first."""
        for chain in run.chains.values():
            if chain.warm_worker is not None:
                self.fleet.set_retention(chain.warm_worker, chain.name, 0.0)
        self.ledger.record(
            RunRow(
                run=run.public_id,
                tenant=run.tenant,
                source=run.source,
                first_seen=self._unix(run.first_seen),
                last_seen=self._unix(run.last_seen),
                turns=run.turns,
                prompt_tokens=run.prompt_tokens,
                cached_tokens=run.cached_tokens,
                output_tokens=run.output_tokens,
                device_s=run.device_s,
                usd=run.usd,
                saved_usd=run.saved_usd,
                all_large_usd=run.all_large_usd,
            )
        )

    def record_policy(self, policy: Policy, at: float) -> None:
        """Record a policy that is put in force."""
        self.ledger.record(policy_row(policy, at))

    def record_rejection(self, context: RequestContext, error: HeadwayError, tenant: str) -> None:
        """Record a request that was refused before it was prepared."""
        record = RequestRecord(
            request_id="",
            tenant=tenant,
            run="",
            chain="",
            asked="",
            outcome="rejected" if error.status < 500 else "failed",
            status=error.status,
            stream=False,
            started_ns=context.wall_ns,
            duration_s=time.monotonic() - context.at,
            error_code=error.code,
            slo=context.slo,
            slo_met=False if context.slo else None,
            trace=self.spans.begin(context.headers),
            route=context.route,
            key_id=context.key_id,
        )
        self.metrics.record(record)
        self.spans.record(record)
        self.ledger.record(_RowsOf(record))


def _entry(active: ActiveRequest, outcome: Outcome, status: int, error_code: str, now: float) -> RequestRecord:
    finished = active.finished
    duration_s = now - active.context.at
    return RequestRecord(
        request_id=active.id,
        tenant=active.tenant,
        run=public_id(active.identity.run),
        chain=public_id(active.identity.chain),
        asked=active.request.model,
        outcome=outcome,
        status=status,
        stream=active.request.stream,
        started_ns=active.context.wall_ns,
        duration_s=duration_s,
        error_code=error_code,
        finish_reason=_finish_reason(active),
        decision=active.pending.decision if active.num_attempts else None,
        queue_s=active.queue_s,
        ttft_s=active.ttft_s,
        prompt_tokens=finished.num_prompt_tokens if finished else 0,
        cached_tokens=finished.num_cached_tokens if finished else 0,
        output_tokens=finished.num_output_tokens if finished else 0,
        prefill_s=finished.prefill_s if finished else 0.0,
        decode_s=finished.decode_s if finished else 0.0,
        device_s=active.device_s,
        cost_usd=active.cost_usd,
        saved_usd=active.saved_usd,
        counterfactual_usd=active.counterfactual_usd,
        cut=active.cut,
        asked_digest=active.asked_digest,
        num_attempts=active.num_attempts,
        slo=active.pending.slo,
        slo_met=_slo_met(active, outcome, status, duration_s),
        placed_s=max(0.0, active.placed_at - active.context.at),
        submitted_s=max(0.0, active.submitted_at - active.context.at),
        worker_queue_s=finished.queue_s if finished else 0.0,
        num_steps=finished.num_steps if finished else 0,
        mean_batch=finished.mean_batch if finished else 0.0,
        max_tokens=active.request.sampling.max_tokens,
        temperature=active.request.sampling.temperature,
        lost=tuple(active.lost),
        trace=active.trace,
        route=active.context.route,
        key_id=active.context.key_id,
    )


def _finish_reason(active: ActiveRequest) -> str:
    """Return the finish reason of the GenAI conventions; empty before the end."""
    if active.finished is None:
        return ""
    return (
        "tool_call"
        if active.finished.reason == "stop" and active.answer and active.answer.tool_calls
        else active.finished.reason
    )


def _slo_met(active: ActiveRequest, outcome: Outcome, status: int, duration_s: float) -> bool | None:
    """Return whether the SLO was met; None for an error of the caller. Rejected and aborted requests are misses."""
    if 400 <= status < 500 and status not in (429, 499):
        return None
    if outcome != "ok" or active.ttft_s is None:
        return False
    in_time = active.slo.ttft_s is None or active.ttft_s <= active.slo.ttft_s
    return in_time and (active.slo.deadline_s is None or duration_s <= active.slo.deadline_s)


class _RowsOf(NamedTuple):
    """The parts of a request's ledger row. The ledger's own thread makes the row."""

    record: RequestRecord

    def rows(self) -> list[Row]:
        request, decision = _request_row(self.record), self.record.decision
        if decision is None:
            return [request]
        return [request, DecisionRow(id=decision.id, at=request.at, body=msgspec.json.encode(decision))]


def _request_row(record: RequestRecord) -> RequestRow:
    """Return the ledger row. A refused request has neither decision nor worker, and costs nothing."""
    decision = record.decision
    chosen = decision.chosen if decision else None
    return RequestRow(
        decision=decision.id if decision else "",
        at=record.started_ns / 1e9,
        tenant=record.tenant,
        run=record.run,
        chain=record.chain,
        asked=record.asked,
        model=chosen.model if chosen else "",
        worker=chosen.worker if chosen else "",
        route=decision.route if decision else "",
        reason=decision.reason if decision else "",
        status=record.error_code or record.finish_reason,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        queue_s=record.queue_s,
        ttft_s=record.ttft_s if record.ttft_s is not None else record.duration_s,
        total_s=record.duration_s,
        device_s=record.device_s,
        usd=record.cost_usd,
        saved_usd=record.saved_usd,
        all_large_usd=record.counterfactual_usd,
        slo_met=bool(record.slo_met),
        request=record.request_id,
        tier=chosen.tier if chosen else "",
        outcome=record.outcome,
        http_status=record.status,
        slo=record.slo,
        slo_counted=record.slo_met is not None,
        prefill_s=record.prefill_s,
        decode_s=record.decode_s,
        num_steps=record.num_steps,
        mean_batch=record.mean_batch,
        num_attempts=record.num_attempts,
        trace=f"{record.trace.trace_id:032x}" if record.trace else "",
        key_id=record.key_id,
        cut=",".join(sorted(set(record.cut))),
        asked_digest=record.asked_digest,
    )
