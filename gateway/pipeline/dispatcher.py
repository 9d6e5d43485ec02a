"""From a question to a running sequence. Binding is late: a request waits in the one queue, and the choice is made again when
a worker has room. A worker never gets more than its credits, but for what it reads at once."""

import asyncio
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial

from msgspec import structs

from gateway.errors import HeadwayError, NoWorker, Overloaded
from gateway.fleet.fleet import Fleet
from gateway.fleet.token_stream import TokenStream
from gateway.pipeline.pending import DispatchPass, PendingRequest, SeatClass
from gateway.pipeline.placement_input import beginning, place_among_alike
from gateway.policy.routes import candidates_for
from gateway.policy.schema import Route, Slo
from gateway.routing.decide import decide
from gateway.routing.decision import Decision
from gateway.scheduling.admission import (
    GOOD_ENOUGH,
    QueueEstimate,
    admit,
    predicted_s,
    slo_bound_s,
)
from gateway.scheduling.dequeue_rate import DequeueRate
from gateway.scheduling.fairness import LEVELS, TenantShares, is_kept
from gateway.scheduling.placement import Placement
from gateway.scheduling.request_queue import Band, QueuedRequest, RequestQueue
from gateway.scheduling.retention import WAITS_COLD
from gateway.scheduling.shed_gate import FlowKey, ShedGate
from gateway.scheduling.ttft_margin import TtftMargin

EXPIRE_EVERY_S = 0.5
MIN_RETRY_S = 0.05
MAX_DECISIONS_A_LINE, MAX_SEEN_A_LINE = 4, 128
"""Of a tenant and band, in one pump, which holds the event loop; what is left is looked at when the next worker reports."""
NOT_PASSED_AFTER_S = 0.05
"""Who has waited so long for a worker to have room for its prompt is not gone past any more: a step or two."""
DECIDED_FOR_S, DECIDED_SHARE = 0.1, 0.05
"""A choice stands so long while its worker has no seat or no room, or for this share of the time waited, if that is more."""
REFRESH_EVERY_S, MAX_REFRESHED = 0.05, 32
"""How often the order takes in what is resident by now, and of how many of those that wait: a walk over all their pages."""


class Dispatcher:
    def __init__(self, fleet: Fleet, queue: RequestQueue, *, clock: Callable[[], float], retry_after_s: float = 1.0) -> None:
        self.fleet = fleet
        self.queue = queue
        self.placement = Placement()
        self.tenant_shares = TenantShares(queue.weight)
        self._clock = clock
        self._retry_after_s = retry_after_s
        self._numbers = itertools.count(1)
        self._waiting: dict[int, PendingRequest] = {}
        self._pass_planned = False
        self._refreshed_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self.ttft_margins: defaultdict[tuple[str, bool], TtftMargin] = defaultdict(TtftMargin)
        """By worker, and whether it is batch work."""
        self._waiting_for = Counter[tuple[str, str, bool]]()
        """How many, by the worker that was chosen last, tenant, and whether it is batch work."""
        self._dequeue_rates: defaultdict[str, DequeueRate] = defaultdict(DequeueRate)
        """Of batch work, by worker."""
        self._devices = {name: worker.device for name, worker in fleet.policy.workers.items()}
        self._overdue_batch: dict[str, TokenStream] = {}
        """The batch work that a worker's last seats were not left by, as it had waited too long."""
        self._shed_gate = ShedGate()
        fleet.changed = self.changed

    def decide(self, pending: PendingRequest) -> Decision:
        """The choice as the world is now. Raises UnknownModel, ContextTooLong or NoWorker."""
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
        estimates = self._queue_estimates(flow.tenant, band)
        workers = (view.worker for view in self.fleet.views() if view.healthy and view.model in candidates)
        wait_s = min((estimates[worker].until_start_s for worker in workers), default=0.0)
        if wait_s <= bound_s:
            return None
        self.tenant_shares.record_arrival(flow.tenant, now)
        return _shed(f"a first token within {bound_s:.3g} s would take over {wait_s:.3g} s", wait_s - bound_s)

    def queue_full(self) -> Overloaded:
        message = (
            f"{len(self.queue):,} requests with {self.queue.uncached_tokens:,} tokens to read are waiting already, which is the"
            " limit: try again"
        )
        return Overloaded(message, retry_after_s=self._retry_after_s)

    async def dispatch(self, pending: PendingRequest) -> TokenStream:
        """Submits when the chosen worker has room, else waits. Raises NoWorker, or Overloaded: at once where the route sheds
        what it cannot keep its promise to, or after too long a wait."""
        pending.decision = self.decide(pending)
        self.tenant_shares.record_arrival(pending.tenant, self._clock())
        if not pending.admitted:
            self._admit(pending, pending.decision)
        seat_class = self._seat_class(pending)
        fits = self._has_capacity(seat_class, pending.decision) and not self._is_reserved(
            seat_class, pending.decision.chosen.worker
        )
        if fits and not self._waiting:
            return self._submit(pending, pending.decision)
        return await self._wait(pending, pending.decision, fits=fits)

    def _admit(self, pending: PendingRequest, decision: Decision) -> None:
        pending.admitted = True
        if pending.on_overload == "queue":
            return
        now, flow = self._clock(), FlowKey(pending.tenant, pending.route, pending.slo, pending.routing_request.asked)
        estimates, waited_s = self._queue_estimates(pending.tenant, pending.band), now - pending.arrival
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
        estimate = estimates[chosen.worker]
        pending.slo_bound_s = slo_bound_s(pending.routing_request, chosen, estimate)
        pending.ttft_prediction = chosen.worker, waited_s + predicted_s(chosen, estimate), now

    def _queue_estimates(self, tenant: str, band: Band) -> dict[str, QueueEstimate]:
        now, is_batch = self._clock(), band is Band.BATCH
        ahead = self._ahead(tenant, is_batch=is_batch)
        estimates = {}
        for view in self.fleet.views():
            predictor = self.fleet.predictors[view.worker]
            running_s = predictor.wait_s(max_sequences=view.max_sequences, queued_tokens=0, now=now)
            turns_s = predictor.turns_s(ahead.get(view.worker, 0.0))
            margin = self.ttft_margins[view.worker, is_batch].margin(now)
            idle = not predictor.running and not turns_s
            lately_s = self._dequeue_rates[view.worker].wait_s(ahead.get(view.worker, 0.0), now) if is_batch else 0.0
            estimates[view.worker] = QueueEstimate(view.wait_s, running_s + turns_s, margin, idle, lately_s)
        return estimates

    def _ahead(self, tenant: str, *, is_batch: bool) -> dict[str, float]:
        """How many of those that wait for each worker count as before the next of a tenant. Batch work goes after the rest.
        Among the rest also those that it would overtake count: they hold promises too. Another tenant's go first only in turns
        with its own."""
        waiting: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (worker, other, other_is_batch), count in self._waiting_for.items():
            if is_batch or not other_is_batch:
                waiting[worker][other] += count
        mine = self.queue.weight(tenant)
        ahead = {}
        for worker, tenants in waiting.items():
            turns = (tenants[tenant] + 1) / mine
            ahead[worker] = tenants[tenant] + sum(
                min(count, turns * self.queue.weight(other)) for other, count in tenants.items() if other != tenant
            )
        return ahead

    def observe_ttft(self, pending: PendingRequest, ttft_s: float) -> None:
        """Its first token came so long after its arrival: predictions learn from it."""
        if pending.ttft_prediction is not None:
            worker, predicted, at = pending.ttft_prediction
            pending.ttft_prediction = None
            self.ttft_margins[worker, pending.band is Band.BATCH].observe(predicted, ttft_s, self._clock(), predicted_at=at)

    async def _wait(self, pending: PendingRequest, decision: Decision, *, fits: bool) -> TokenStream:
        """`fits`: its worker could take it at once, if nobody goes before it."""
        number = next(self._numbers)
        chosen = decision.chosen
        uncached = chosen.prompt_tokens - chosen.cached_tokens
        by_run = self._by_run
        item = QueuedRequest(
            request=number,
            tenant=pending.tenant if by_run else "",
            run=pending.run,
            band=pending.band if by_run else Band.AGENT_TURN,
            arrival=pending.arrival,
            deadline=pending.deadline,
            uncached_tokens=uncached,
            resident=2 * chosen.cached_tokens >= chosen.prompt_tokens or not by_run,
            attained_s=pending.attained * self._prefill_s(chosen.worker) if by_run else 0.0,
            num_bytes=sum(len(prompt.data) for prompt in pending.prompts.values()),
            admitted_run=pending.admitted_run,
            due=pending.due,
            slo_missed_at=pending.arrival + pending.slo_bound_s,
        )
        if not self._push(item):
            raise self.queue_full()
        waiter = pending.waiter = asyncio.get_running_loop().create_future()
        self._waiting[number] = pending
        self._count_for(pending, chosen.worker)
        self._keep_decision(pending, self._clock())
        # Batch work goes after the rest, which does not wait for it.
        queued = 0 if pending.band is Band.BATCH else uncached
        self.fleet.queue(chosen.worker, queued)
        if chosen.cached_tokens and not item.resident:  # what is left of it makes room for others while it waits
            self.fleet.set_retention(chosen.worker, pending.chain, WAITS_COLD)
        self._plan_expiry()
        if fits:
            self._run_pass()  # now: it is likely the next, and the loop may take a while to come round
        else:
            self.changed()
        try:
            stream: TokenStream = await waiter
            return stream
        except asyncio.CancelledError:
            # Bound in the same moment in which the caller left: nobody will read it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().abort()
            raise
        finally:
            self.fleet.queue(chosen.worker, -queued)
            self._count_for(pending, None)
            self._waiting.pop(number, None)
            self.queue.cancel(number)

    @property
    def _by_run(self) -> bool:
        """Else first come, first served."""
        return self.fleet.policy.scheduling.order == "runs"

    def _prefill_s(self, worker: str) -> float:
        """Of a token."""
        return self.fleet.predictors[worker].rates.prefill_s_per_token

    def _push(self, item: QueuedRequest) -> bool:
        """Where the queue is full, what is no turn of an admitted run gives way to one that is, and a tenant that fills the
        queue to one that does not."""
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

    def _count_for(self, pending: PendingRequest, worker: str | None, *, begins: bool = False) -> None:
        """What waits counts for the worker that was chosen last, until it waits no more."""
        is_batch, before = pending.band is Band.BATCH, pending.counted_worker
        if before == worker:
            return
        pending.counted_worker = worker
        if before is not None:
            key = before, pending.tenant, is_batch
            self._waiting_for[key] -= 1
            if not self._waiting_for[key]:
                del self._waiting_for[key]
            if is_batch and begins:
                others = any(name == before and other for name, _, other in self._waiting_for)
                self._dequeue_rates[before].record_start(self._clock(), others=others)
        if worker is not None:
            self._waiting_for[worker, pending.tenant, is_batch] += 1
            if is_batch:
                self._dequeue_rates[worker].record_waiting(self._clock())

    def changed(self) -> None:
        """A worker may have room: look once, after all frames at hand are read."""
        if self._waiting and not self._pass_planned:
            self._pass_planned = True
            asyncio.get_running_loop().call_soon(self._run_pass)

    def _run_pass(self) -> None:
        self._pass_planned = False
        now, prefill_rate = self._clock(), self.fleet.prefill_rate()
        scan = DispatchPass(thorough=now - self._refreshed_at >= REFRESH_EVERY_S)
        if scan.is_full:
            self._refreshed_at = now
            self._refresh()
        outcome: Decision | HeadwayError | None = None

        def ready(item: QueuedRequest) -> bool:
            nonlocal outcome
            pending = self._waiting[item.request]
            line = item.tenant, item.band.line
            scan.num_visited[line] += 1
            if scan.num_decided[line] >= MAX_DECISIONS_A_LINE:
                return False
            seat_class = self._seat_class(pending)
            if not self._may_dispatch(pending, seat_class, scan, now):
                if not seat_class.is_overdue and not any(
                    self._has_seat(seat_class, name, scan) for name in self.fleet.predictors
                ):
                    scan.blocked.add(line)
                return False
            scan.num_decided[line] += 1
            try:
                outcome = self.decide(pending)
            except HeadwayError as error:
                outcome = error
                return True
            pending.decision = outcome
            self._keep_decision(pending, now)
            self._count_for(pending, outcome.chosen.worker)
            return self._can_dispatch(pending, seat_class, outcome, scan, now)

        def closed(tenant: str, band: Band) -> bool:
            line = tenant, band
            if (
                line in scan.blocked
                or scan.num_decided[line] >= MAX_DECISIONS_A_LINE
                or scan.num_visited[line] >= MAX_SEEN_A_LINE
            ):
                return True
            return not scan.is_full and self._by_run and self._is_blocked(tenant, band, scan)

        while (item := self.queue.pop(ready, now=now, prefill_rate=prefill_rate, closed=closed)) is not None:
            pending = self._waiting.pop(item.request)
            self._count_for(pending, None, begins=True)
            assert pending.waiter and outcome
            if pending.waiter.done():
                continue
            if isinstance(outcome, HeadwayError):
                pending.waiter.set_exception(outcome)
            else:
                pending.waiter.set_result(self._submit(pending, outcome))
                scan.seat_taken()

    def _keep_decision(self, pending: PendingRequest, now: float) -> None:
        pending.decision_kept_until = now + max(DECIDED_FOR_S, DECIDED_SHARE * (now - pending.arrival))

    def _refresh(self) -> None:
        """The order is that of what is resident now, of those that have waited longest."""
        for number in self.queue.requests()[:MAX_REFRESHED]:
            pending = self._waiting[number]
            assert pending.decision
            chosen = pending.decision.chosen
            cached = self.fleet.cached_tokens(chosen.worker, pending.prompts[chosen.worker].page_hashes)
            uncached = chosen.prompt_tokens - cached
            resident = 2 * cached >= chosen.prompt_tokens or not self._by_run
            self.queue.refresh(number, uncached_tokens=uncached, resident=resident)

    def _is_blocked(self, tenant: str, line: Band, scan: DispatchPass) -> bool:
        """Whether the workers that were chosen for those in a line have no seat for them."""
        if (tenant, line) in scan.open:
            return False
        workers = {name for name, one, is_batch in self._waiting_for if one == tenant and is_batch == (line is Band.BATCH)}
        kinds = [SeatClass(tenant, line, judged, is_overdue=False) for judged in (False, True)]
        may = any(self._has_seat(seat_class, name, scan) for name in workers for seat_class in kinds)
        (scan.open if may else scan.blocked).add((tenant, line))
        return not may

    def _may_dispatch(self, pending: PendingRequest, seat_class: SeatClass, scan: DispatchPass, now: float) -> bool:
        """A cheap look before deciding: the worker that was chosen lately, or else any, has a seat for it, or none is up, which
        is to be told."""
        if pending.decision and now < pending.decision_kept_until and self.fleet.server(pending.decision.chosen.worker).healthy:
            return self._can_dispatch(pending, seat_class, pending.decision, scan, now)
        workers = [worker for worker in pending.prompts if worker not in pending.excluded]
        if any(self._has_seat(seat_class, worker, scan) for worker in workers):
            return True
        return not any(self.fleet.server(worker).healthy for worker in workers)

    def _seat_class(self, pending: PendingRequest) -> SeatClass:
        late = pending.band is Band.BATCH and self._clock() >= pending.due
        return SeatClass(pending.tenant, pending.band.line, pending.on_overload != "queue", late)

    def _has_seat(self, seat_class: SeatClass, worker: str, scan: DispatchPass) -> bool:
        """Whether it has one, and for these."""
        key = worker, seat_class
        if key not in scan.seats:
            free = self.fleet.server(worker).credits.num_free >= 1 and not self._is_reserved(seat_class, worker)
            scan.seats[key] = free and self._priority(seat_class, worker) < scan.blocked_at.get(worker, math.inf)
        return scan.seats[key]

    def _can_dispatch(
        self, pending: PendingRequest, seat_class: SeatClass, decision: Decision, scan: DispatchPass, now: float
    ) -> bool:
        """A seat, and room for its prompt. Who has waited long for the latter is not gone past."""
        worker = decision.chosen.worker
        if not self._has_seat(seat_class, worker, scan):
            return False
        room = self._has_capacity(seat_class, decision)
        if not room and now - pending.arrival >= NOT_PASSED_AFTER_S:
            scan.blocked_at[worker] = self._priority(seat_class, worker)
            scan.seats.clear()
        return room

    def _has_capacity(self, seat_class: SeatClass, decision: Decision) -> bool:
        chosen = decision.chosen
        uncached = chosen.prompt_tokens - chosen.cached_tokens
        return self.fleet.server(chosen.worker).credits.has_capacity(uncached, self._priority(seat_class, chosen.worker))

    def _is_reserved(self, seat_class: SeatClass, worker: str) -> bool:
        """The last seats: batch work leaves them to those who were promised a soon first token, where promises are judged, but
        for one at a time that has waited for half of what it was promised; and a tenant that has its share to the others."""
        hello = self.fleet.clients[worker].hello if worker in self.fleet.clients else None
        if not hello or not self._by_run:
            return False
        credits = self.fleet.clients[worker].credits
        if not credits.live or not is_kept(credits.num_free, hello.max_sequences):
            return False
        if seat_class.line is Band.BATCH and seat_class.has_slo:
            let_in = self._overdue_batch.get(worker)
            return not seat_class.is_overdue or (let_in is not None and let_in.finished is None)
        return self.tenant_shares.is_at_share(seat_class.tenant, credits.taken, hello.max_sequences, self._clock())

    def _submit(self, pending: PendingRequest, decision: Decision) -> TokenStream:
        worker = decision.chosen.worker
        uncached = decision.chosen.prompt_tokens - decision.chosen.cached_tokens
        pending.decision = decision
        pending.kv_index_sequence = self.fleet.kv_index.sequence(worker)
        sampling = pending.sampling
        if worker in self.fleet.upstreams:
            assert pending.request
            stream = self.fleet.upstreams[worker].submit(
                pending.request,
                sampling,
                prompt_tokens=decision.chosen.prompt_tokens,
                chain=pending.chain,
                traceparent=pending.traceparent,
            )
            stream.on_first = partial(self.fleet.predictors[worker].first_token, stream.request)
            return stream
        if grammar := pending.grammars.get(worker):
            sampling = structs.replace(sampling, grammar=grammar)
        chosen, seat_class = decision.chosen, self._seat_class(pending)
        if chosen.holdback_tokens:
            sampling = structs.replace(sampling, confidence=True)
        stream = self.fleet.clients[worker].submit(
            pending.prompts[worker].data,
            sampling,
            shared_tokens=pending.prompts[worker].shared_tokens,
            uncached_tokens=uncached,
            priority=self._priority(seat_class, worker),
            salt=pending.tenant,
            chain=pending.chain,
            traceparent=pending.traceparent,
        )
        if seat_class.is_overdue:
            self._overdue_batch[worker] = stream
        if chosen.holdback_tokens:
            stream.hold_back(chosen.holdback_tokens, chosen.escalate_below)
        predictor, hello = self.fleet.predictors[worker], self.fleet.clients[worker].hello
        stream.on_first = partial(predictor.first_token, stream.request)
        wait_s = predictor.wait_s(max_sequences=hello.max_sequences if hello else 1, queued_tokens=0, now=self._clock())
        predictor.submitted(stream.request, uncached, wait_s=wait_s)
        tokens = decision.chosen.prompt_tokens + min(sampling.max_tokens, int(pending.routing_request.expected_output_tokens))
        self.fleet.footprints.record(worker, pending.chain, tokens)
        if prefix := beginning(pending.prompts[worker].page_hashes):
            self.placement.record_placement(worker, self._clock(), prefix=prefix)
        return stream

    def _priority(self, seat_class: SeatClass, worker: str) -> int:
        """At the worker, where lower goes first: by band, and in a band who has less of its share of the seats. Batch work that
        has waited for half of what it was promised goes with the turns of agents."""
        if not self._by_run or worker not in self.fleet.clients:
            return 0
        client = self.fleet.clients[worker]
        total = client.hello.max_sequences if client.hello else 1
        level = self.tenant_shares.level(seat_class.tenant, client.credits.taken, total, self._clock())
        return LEVELS * int(Band.AGENT_TURN if seat_class.is_overdue else seat_class.line) + level

    def _plan_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(EXPIRE_EVERY_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._clock()
        for item in self.queue.expire(now):
            pending = self._waiting.pop(item.request)
            if pending.waiter and not pending.waiter.done():
                waited = now - item.arrival
                self.observe_ttft(pending, waited)  # if not later
                pending.waiter.set_exception(
                    Overloaded(
                        f"no worker had room for {waited:.0f} s, the longest that this policy lets a request wait: try again",
                        retry_after_s=self._retry_after_s,
                    )
                )
        if self._waiting:
            self.changed()
            self._plan_expiry()

    def all_workers_lost(self) -> NoWorker:
        return NoWorker("every worker that could have taken it was lost: try again", retry_after_s=self._retry_after_s)


def _shed(broken: str, late_s: float) -> Overloaded:
    return Overloaded(f"{broken}: try again later", retry_after_s=max(MIN_RETRY_S, late_s))
