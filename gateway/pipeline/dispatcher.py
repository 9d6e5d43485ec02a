"""From a pending request to a token stream. Binding is late: a request waits in the one queue for the worker of its last
decision, and is decided again before it starts. A worker gets no more than its credits, but for prompts that run ahead of its
backlog."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable

from msgspec import structs

from gateway.errors import HeadwayError, NoWorker, Overloaded
from gateway.fleet.fleet import Fleet
from gateway.fleet.token_stream import TokenStream
from gateway.pipeline.dispatch_pass import DispatchPass
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.placement_input import place_among_alike
from gateway.pipeline.queue_estimator import QueueEstimator
from gateway.pipeline.submitter import Submitter
from gateway.pipeline.worker_seats import WorkerSeats
from gateway.policy.routes import candidates_for
from gateway.policy.schema import Route, Slo
from gateway.routing.decide import decide
from gateway.routing.decision import Decision
from gateway.scheduling.admission import GOOD_ENOUGH, admit, predicted_s
from gateway.scheduling.placement import Placement
from gateway.scheduling.request_queue import Band, QueuedRequest, RequestQueue
from gateway.scheduling.retention import WAITS_COLD
from gateway.scheduling.shed_gate import FlowKey, ShedGate

EXPIRE_EVERY_S = 0.5
MIN_RETRY_S = 0.05
REDECIDE_EVERY_S, MAX_REDECIDED = 0.05, 8
"""Interval at which waiting requests are decided again, and how many. Derived: at 0.3 ms each, a twentieth of the time."""


class Dispatcher:
    def __init__(self, fleet: Fleet, queue: RequestQueue, *, clock: Callable[[], float], retry_after_s: float = 1.0) -> None:
        self.fleet = fleet
        self.queue = queue
        self.placement = Placement()
        self._clock = clock
        self._retry_after_s = retry_after_s
        self._numbers = itertools.count(1)
        self._waiting = OrderedDict[int, PendingRequest]()
        """By request number, the longest without a decision first."""
        self._pass_planned = False
        self._redecided_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._devices = {name: worker.device for name, worker in fleet.policy.workers.items()}
        self.seats = WorkerSeats(fleet, queue.weight, clock=clock)
        self.estimator = QueueEstimator(fleet, queue, self.seats, clock=clock)
        self._submitter = Submitter(fleet, self.seats, self.placement, clock=clock)
        self._shed_gate = ShedGate()
        fleet.changed = self.changed

    def decide(self, pending: PendingRequest) -> Decision:
        """Return the decision as the world is now. Raises UnknownModel, ContextTooLong or NoWorker."""
        cached: dict[str, int] = {}
        for page_hashes in pending.page_hashes:
            cached |= self.fleet.holders(page_hashes)
        for name in self.fleet.upstreams:
            if prompt := pending.prompts.get(name):
                cached[name] = self.fleet.cached_tokens(name, prompt.page_hashes)
        routing_request = structs.replace(pending.routing_request, cached_tokens=cached, excluded_workers=pending.excluded)
        views, fleet_summary = self.fleet.candidates(routing_request)
        decision = decide(
            routing_request, views, decision_id=pending.decision_id, route=pending.route, fleet_summary=fleet_summary
        )
        if pending.escalated or pending.degraded:
            decision = structs.replace(decision, reason="escalated" if pending.escalated else "degraded")
        now = self._clock()
        decision = place_among_alike(
            self.placement, self.fleet, routing_request, decision, pending.prompts, chain=pending.chain, now=now
        )
        there = pending.alternative_worker
        if there and any(one.option.worker == there and one.reason in GOOD_ENOUGH for one in decision.rejected):
            return decision.moved(there, "breaks_slo")
        return decision

    @property
    def is_shedding(self) -> bool:
        """Whether a request of some flow was shed lately."""
        return not self._shed_gate.is_open(self._clock())

    def shed_early(self, flow: FlowKey, route: Route, slo: Slo, band: Band) -> Overloaded | None:
        """Return the refusal of a request that is shed without tokenizing it, or None.

        Its flow is being shed, and queue time alone exceeds its SLO on every worker of its candidates.
        """
        now, bound_s = self._clock(), slo.deadline_s if slo.ttft_s is None else slo.ttft_s
        if route.on_overload != "shed" or bound_s is None or not self._shed_gate.is_shedding(flow, now):
            return None
        candidates = candidates_for(self.fleet.policy, route, tenant=flow.tenant)
        estimates = self.estimator.estimates(flow.tenant, band)
        workers = (view.worker for view in self.fleet.views() if view.healthy and view.model in candidates)
        wait_s = min((estimates[worker].until_start_s for worker in workers), default=0.0)
        if wait_s <= bound_s:
            return None
        self.seats.tenant_shares.record_arrival(flow.tenant, now, batch=band is Band.BATCH)
        return _shed(f"a first token within {bound_s:.3g} s would take over {wait_s:.3g} s", wait_s - bound_s)

    def queue_full(self) -> Overloaded:
        message = (
            f"{len(self.queue):,} requests with {self.queue.uncached_tokens:,} tokens to prefill are waiting already, which is"
            " the limit: try again"
        )
        return Overloaded(message, retry_after_s=self._retry_after_s)

    async def dispatch(self, pending: PendingRequest) -> TokenStream:
        """Submit a request when the chosen worker has capacity, else queue it.

        Raises NoWorker, or Overloaded: at once where the route sheds requests whose SLO would be missed or the queue is full,
        else after the longest wait.
        """
        pending.decision = self.decide(pending)
        batch = pending.band is Band.BATCH
        self.seats.tenant_shares.record_arrival(pending.tenant, self._clock(), batch=batch)
        if not pending.admitted:
            self._admit(pending, pending.decision)
        fits = self._fits(pending, pending.decision)
        if fits and not self._waiting:
            return self._start(pending, pending.decision, batch_waits=False)
        return await self._wait(pending, pending.decision, fits=fits)

    def _fits(self, pending: PendingRequest, decision: Decision) -> bool:
        """Return whether the chosen worker has a seat and capacity for a request that does not wait yet."""
        chosen, tenant, band = decision.chosen, pending.tenant, pending.band
        if not self.seats.is_free(tenant, band, chosen.worker):
            return False
        priority = self.seats.priority(tenant, band, chosen.worker)
        credits = self.fleet.server(chosen.worker).credits
        return credits.has_capacity(chosen.prompt_tokens - chosen.cached_tokens, priority)

    def _start(self, pending: PendingRequest, decision: Decision, *, batch_waits: bool) -> TokenStream:
        stream = self._submitter.submit(pending, decision)
        share = self.seats.batch_shares[decision.chosen.worker]
        share.record_start(batch=pending.band is Band.BATCH, batch_waits=batch_waits)
        return stream

    def _admit(self, pending: PendingRequest, decision: Decision) -> None:
        pending.admitted = True
        if pending.on_overload == "queue":
            return
        now, flow = self._clock(), FlowKey(pending.tenant, pending.route, pending.slo, pending.routing_request.asked)
        estimates, waited_s = self.estimator.estimates(pending.tenant, pending.band), now - pending.arrival
        admission = admit(
            pending.routing_request,
            decision,
            estimates,
            on_overload=pending.on_overload,
            admitted_run=pending.admitted_run,
            waited_s=waited_s,
            devices=self._devices,
        )
        if admission.action == "shed":
            self._shed_gate.record_refusal(flow, now)
            raise _shed(admission.missed_slo, admission.late_s)
        if admission.action == "admit" and admission.alternative is not None:
            pending.alternative_worker = admission.alternative.worker
            decision = pending.decision = decision.moved(pending.alternative_worker, "breaks_slo")
        elif admission.alternative is not None:
            pending.degraded = True
            routing_request = pending.routing_request
            pending.routing_request = structs.replace(
                routing_request, candidates=(admission.alternative.model,), fallbacks=routing_request.candidates, escalations={}
            )
            decision = pending.decision = self.decide(pending)
        chosen = decision.chosen
        pending.ttft_prediction = chosen.worker, waited_s + predicted_s(chosen, estimates[chosen.worker]), now

    async def _wait(self, pending: PendingRequest, decision: Decision, *, fits: bool) -> TokenStream:
        """Queue a request until it starts. `fits`: its worker has capacity now, unless another request goes first."""
        number, chosen = next(self._numbers), decision.chosen
        item = self._queued(number, pending, decision)
        if not self._push(item):
            raise self.queue_full()
        waiter = pending.waiter = asyncio.get_running_loop().create_future()
        self._waiting[number] = pending
        self._count_tokens(pending, chosen.worker, item.uncached_tokens)
        if chosen.cached_tokens and not item.resident:  # its remaining pages make room for others while it waits
            self.fleet.set_retention(chosen.worker, pending.chain, WAITS_COLD)
        self._plan_expiry()
        if fits:
            self._run_pass()  # it is likely the next, and the event loop may take a while to come round
        else:
            self.changed()
        try:
            stream: TokenStream = await waiter
            return stream
        except asyncio.CancelledError:
            # The request started in the moment in which its client left.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().abort()
            raise
        finally:
            self._count_tokens(pending, None, 0)
            self._waiting.pop(number, None)
            self.queue.cancel(number)

    def _count_tokens(self, pending: PendingRequest, worker: str | None, tokens: int) -> None:
        """Count a waiting request's uncached tokens for its worker. Batch work goes after the rest, which does not wait for
        it."""
        if pending.band is not Band.BATCH:
            previous, counted = pending.counted
            if previous is not None:
                self.fleet.queue(previous, -counted)
            if worker is not None:
                self.fleet.queue(worker, tokens)
            pending.counted = worker, tokens

    def _queued(self, number: int, pending: PendingRequest, decision: Decision) -> QueuedRequest:
        chosen, by_run = decision.chosen, self.seats.by_run
        prefill_s = self.fleet.predictors[chosen.worker].rates.prefill_s_per_token
        return QueuedRequest(
            request=number,
            tenant=pending.tenant if by_run else "",
            run=pending.run,
            band=pending.band if by_run else Band.AGENT_TURN,
            arrival=pending.arrival,
            deadline=pending.deadline,
            uncached_tokens=chosen.prompt_tokens - chosen.cached_tokens,
            worker=chosen.worker,
            resident=2 * chosen.cached_tokens >= chosen.prompt_tokens or not by_run,
            attained_s=pending.attained * prefill_s if by_run else 0.0,
            num_bytes=sum(len(prompt.data) for prompt in pending.prompts.values()),
            admitted_run=pending.admitted_run,
        )

    def _push(self, item: QueuedRequest) -> bool:
        """Queue a request, evicting others when the queue is full.

        Turns of an admitted run evict requests that are not; a tenant with less in the queue evicts one with more.
        """
        while not (pushed := self.queue.push(item)):
            last = self.queue.evict_for(item)
            if last is None:
                break
            waiter = self._waiting[last.request].waiter
            if waiter and not waiter.done():
                first = "turns of runs that have begun go" if item.admitted_run else "tenants with less in it go"
                message = f"the queue is full, and {first} first: try again"
                waiter.set_exception(Overloaded(message, retry_after_s=self._retry_after_s))
        return pushed

    def changed(self) -> None:
        """Plan one pass, after the frames at hand are handled: a worker may have capacity."""
        if self._waiting and not self._pass_planned:
            self._pass_planned = True
            asyncio.get_running_loop().call_soon(self._run_pass)

    def _run_pass(self) -> None:
        """Start every waiting request that can start now, in the order of the queue."""
        self._pass_planned = False
        now = self._clock()
        if now - self._redecided_at >= REDECIDE_EVERY_S:
            self._redecided_at = now
            self._redecide()
        scan = DispatchPass(self.fleet, self.seats, self._waiting, self.decide, now=now)
        while (item := self._pop(scan, now)) is not None:
            pending = self._waiting.pop(item.request)
            assert pending.waiter and scan.outcome
            if pending.waiter.done():
                continue
            if isinstance(scan.outcome, HeadwayError):
                pending.waiter.set_exception(scan.outcome)
            else:
                batch_waits = pending.band is Band.BATCH or self.queue.has_batch(scan.outcome.chosen.worker)
                pending.waiter.set_result(self._start(pending, scan.outcome, batch_waits=batch_waits))
                scan.seat_taken()
        for number, decision in scan.moved.items():
            if number in self._waiting:
                self._reassign(number, decision)

    def _pop(self, scan: DispatchPass, now: float) -> QueuedRequest | None:
        prefill_rate, owed = self.fleet.prefill_rate(), self.seats.owed()
        return self.queue.pop(scan.is_ready, now=now, prefill_rate=prefill_rate, closed=scan.is_closed, owed=owed)

    def _redecide(self) -> None:
        """Decide some waiting requests as the world is now, in turn: their pages or a better worker may have come."""
        for number in list(itertools.islice(self._waiting, MAX_REDECIDED)):
            pending = self._waiting[number]
            self._waiting.move_to_end(number)
            try:
                pending.decision = self.decide(pending)
            except HeadwayError:  # the pass reports it
                continue
            self._reassign(number, pending.decision)

    def _reassign(self, number: int, decision: Decision) -> None:
        """Let a waiting request wait for the worker of its new decision."""
        chosen = decision.chosen
        uncached = chosen.prompt_tokens - chosen.cached_tokens
        resident = 2 * chosen.cached_tokens >= chosen.prompt_tokens or not self.seats.by_run
        self.queue.refresh(number, uncached_tokens=uncached, resident=resident, worker=chosen.worker)
        self._count_tokens(self._waiting[number], chosen.worker, uncached)

    def _plan_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(EXPIRE_EVERY_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._clock()
        for item in self.queue.expire(now):
            pending = self._waiting.pop(item.request)
            if pending.waiter and not pending.waiter.done():
                waited_s = now - item.arrival
                self.estimator.observe_ttft(pending, waited_s)  # a lower bound
                message = f"no worker had capacity for {waited_s:.0f} s, the longest wait of this policy: try again"
                pending.waiter.set_exception(Overloaded(message, retry_after_s=self._retry_after_s))
        if self._waiting:
            self.changed()
            self._plan_expiry()

    def all_workers_lost(self) -> NoWorker:
        return NoWorker("every worker that could have taken it was lost: try again", retry_after_s=self._retry_after_s)


def _shed(broken: str, late_s: float) -> Overloaded:
    return Overloaded(f"{broken}: try again later", retry_after_s=max(MIN_RETRY_S, late_s))
