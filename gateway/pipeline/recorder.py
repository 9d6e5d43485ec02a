"""Where a request's costs are added up and told, exactly once: to its run, the metrics, the spans and the ledger."""

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
    """`capture` puts what was said into the spans."""

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

    def begin(self, call: ActiveRequest) -> None:
        """Before anything is sent to a worker: the ids of the request's spans, which the worker is told."""
        call.trace = self.spans.begin(call.arrival.headers)
        call.ticket.traceparent = call.trace.traceparent if call.trace else call.arrival.headers.get("traceparent", "")

    def held(self, request: str, route: str, payers: Payers, holds: Sequence[Reservation], at: float) -> None:
        """Before it is dispatched: should this process be killed, the next one knows what may have been spent."""
        together = NOTHING
        for hold in holds:
            together = together.plus(hold.most)
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

    def attempt_ended(self, call: ActiveRequest, finished: Finished) -> None:
        """Charges one attempt, before anybody reads its end."""
        decision = call.ticket.decision
        assert decision
        worker = decision.chosen.worker
        paid = charge(
            finished,
            self.fleet.tariff(worker),
            large=self.fleet.tariff(self._top) if self._top else None,
            on_large=decision.chosen.tier == self.fleet.policy.tiers[-1],
        )
        call.finished, call.charge = finished, paid
        call.device_s += paid.device_s
        call.cost_usd += paid.usd
        call.saved_usd += paid.saved_by_cache_usd
        # Of the answering attempt alone: on the large tier from the beginning none of the others would have been.
        all_large_usd, call.counterfactual_usd = paid.all_large_usd - call.counterfactual_usd, paid.all_large_usd
        self.runs.charged(
            call.identity.run,
            device_s=paid.device_s,
            usd=paid.usd,
            saved_usd=paid.saved_by_cache_usd,
            all_large_usd=all_large_usd,
            prompt_tokens=finished.num_prompt_tokens,
            cached_tokens=finished.num_cached_tokens,
            output_tokens=finished.num_output_tokens,
        )
        if finished.reason in ("stop", "length"):
            self._learn(call, finished, worker)

    def _learn(self, call: ActiveRequest, finished: Finished, worker: str) -> None:
        link = self.fleet.links.get(worker)
        hello = link.hello if link else None
        if hello:
            names = call.ticket.prompts[worker].names
            self.fleet.repair(worker, names, finished.num_cached_tokens, since=call.ticket.residency_at)
            if not call.is_extra:
                call.chain.reports.append(
                    report(
                        call.ticket.prompts[worker].change,
                        turn=call.chain.turns,
                        worker=worker,
                        previous_worker=call.came_from,
                        prompt_tokens=finished.num_prompt_tokens,
                        cached_tokens=finished.num_cached_tokens,
                        page_size=hello.page_size,
                        normalized=call.request.normalized,
                    )
                )
        self.lengths.observe(call.ticket.route, finished.num_output_tokens)

    def close(self, call: ActiveRequest, outcome: Outcome, status: int, error_code: str = "") -> None:
        """The end of a request that got as far as having a ticket."""
        assert not call.closed, "a request was accounted twice"
        call.closed = True
        entry = _entry(call, outcome, status, error_code, time.monotonic())
        self._settle(call, entry)
        if self._capture and entry.trace:
            entry = msgspec.structs.replace(
                entry, content=content_of(call.request, call.answer, entry.finish_reason or error_code)
            )
        self.metrics.record(entry)
        self.spans.record(entry)
        self.ledger.record(_RowsOf(entry))
        if run := self.runs.closed(call.run, final=call.identity.final, now=time.monotonic()):
            self.run_ended(run)

    def _settle(self, call: ActiveRequest, entry: RequestRecord) -> None:
        """A request that no worker had spent nothing."""
        tokens = entry.prompt_tokens + entry.output_tokens
        if call.arrival.passed is not None:
            self.rates.settle(call.arrival.passed, call.held_tokens, tokens, time.monotonic())
        if call.hold is not None:
            turns = 1 if entry.decision and not call.is_extra else 0
            self.budgets.settle(call.hold, Amount(entry.cost_usd, tokens, turns))

    def run_ended(self, run: Run) -> None:
        """Its sums are kept, and its pages may go: nobody will come back for them."""
        for chain in run.chains.values():
            if chain.warm_worker is not None:
                self.fleet.retain(chain.warm_worker, chain.name, 0.0)
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

    def policy_in_force(self, policy: Policy, at: float) -> None:
        """Once for every policy that is put in force."""
        self.ledger.record(policy_row(policy, at))

    def turned_away(self, arrival: RequestContext, error: HeadwayError, tenant: str) -> None:
        """The end of a request that never got a ticket."""
        entry = RequestRecord(
            request_id="",
            tenant=tenant,
            run="",
            chain="",
            asked="",
            outcome="rejected" if error.status < 500 else "failed",
            status=error.status,
            stream=False,
            started_ns=arrival.wall_ns,
            duration_s=time.monotonic() - arrival.at,
            error_code=error.code,
            slo=arrival.slo,
            slo_met=False if arrival.slo else None,
            trace=self.spans.begin(arrival.headers),
            route=arrival.route,
            key_id=arrival.key_id,
        )
        self.metrics.record(entry)
        self.spans.record(entry)
        self.ledger.record(_RowsOf(entry))


def _entry(call: ActiveRequest, outcome: Outcome, status: int, error_code: str, now: float) -> RequestRecord:
    finished = call.finished
    duration_s = now - call.arrival.at
    return RequestRecord(
        request_id=call.id,
        tenant=call.tenant,
        run=public_id(call.identity.run),
        chain=public_id(call.identity.chain),
        asked=call.request.model,
        outcome=outcome,
        status=status,
        stream=call.request.stream,
        started_ns=call.arrival.wall_ns,
        duration_s=duration_s,
        error_code=error_code,
        finish_reason=_finish_reason(call),
        decision=call.ticket.decision if call.num_attempts else None,
        queue_s=call.queue_s,
        ttft_s=call.ttft_s,
        prompt_tokens=finished.num_prompt_tokens if finished else 0,
        cached_tokens=finished.num_cached_tokens if finished else 0,
        output_tokens=finished.num_output_tokens if finished else 0,
        prefill_s=finished.prefill_s if finished else 0.0,
        decode_s=finished.decode_s if finished else 0.0,
        device_s=call.device_s,
        cost_usd=call.cost_usd,
        saved_usd=call.saved_usd,
        counterfactual_usd=call.counterfactual_usd,
        num_attempts=call.num_attempts,
        slo=call.ticket.slo,
        slo_met=_slo_met(call, outcome, status, duration_s),
        placed_s=max(0.0, call.placed_at - call.arrival.at),
        submitted_s=max(0.0, call.submitted_at - call.arrival.at),
        worker_queue_s=finished.queue_s if finished else 0.0,
        num_steps=finished.num_steps if finished else 0,
        mean_batch=finished.mean_batch if finished else 0.0,
        max_tokens=call.request.sampling.max_tokens,
        temperature=call.request.sampling.temperature,
        lost=tuple(call.lost),
        trace=call.trace,
        route=call.arrival.route,
        key_id=call.arrival.key_id,
    )


def _finish_reason(call: ActiveRequest) -> str:
    """As the GenAI conventions name it; empty while nothing ended."""
    if call.finished is None:
        return ""
    return "tool_call" if call.finished.reason == "stop" and call.answer and call.answer.tool_calls else call.finished.reason


def _slo_met(call: ActiveRequest, outcome: Outcome, status: int, duration_s: float) -> bool | None:
    """Rejected and aborted requests are misses; what the caller got wrong does not count."""
    if 400 <= status < 500 and status not in (429, 499):
        return None
    if outcome != "ok" or call.ttft_s is None:
        return False
    in_time = call.slo.ttft_s is None or call.ttft_s <= call.slo.ttft_s
    return in_time and (call.slo.deadline_s is None or duration_s <= call.slo.deadline_s)


class _RowsOf(NamedTuple):
    """What the ledger keeps of a request, made by its own thread."""

    entry: RequestRecord

    def rows(self) -> list[Row]:
        request, decision = _request_row(self.entry), self.entry.decision
        if decision is None:
            return [request]
        return [request, DecisionRow(id=decision.id, at=request.at, body=msgspec.json.encode(decision))]


def _request_row(entry: RequestRecord) -> RequestRow:
    """A request that was turned away has neither decision nor worker, and cost nothing."""
    decision = entry.decision
    chosen = decision.chosen if decision else None
    return RequestRow(
        decision=decision.id if decision else "",
        at=entry.started_ns / 1e9,
        tenant=entry.tenant,
        run=entry.run,
        chain=entry.chain,
        asked=entry.asked,
        model=chosen.model if chosen else "",
        worker=chosen.worker if chosen else "",
        route=decision.route if decision else "",
        reason=decision.reason if decision else "",
        status=entry.error_code or entry.finish_reason,
        prompt_tokens=entry.prompt_tokens,
        cached_tokens=entry.cached_tokens,
        output_tokens=entry.output_tokens,
        queue_s=entry.queue_s,
        ttft_s=entry.ttft_s if entry.ttft_s is not None else entry.duration_s,
        total_s=entry.duration_s,
        device_s=entry.device_s,
        usd=entry.cost_usd,
        saved_usd=entry.saved_usd,
        all_large_usd=entry.counterfactual_usd,
        slo_met=bool(entry.slo_met),
        request=entry.request_id,
        tier=chosen.tier if chosen else "",
        outcome=entry.outcome,
        http_status=entry.status,
        slo=entry.slo,
        slo_counted=entry.slo_met is not None,
        prefill_s=entry.prefill_s,
        decode_s=entry.decode_s,
        num_steps=entry.num_steps,
        mean_batch=entry.mean_batch,
        num_attempts=entry.num_attempts,
        trace=f"{entry.trace.trace_id:032x}" if entry.trace else "",
        key_id=entry.key_id,
    )
