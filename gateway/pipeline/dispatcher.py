"""From a question to a running sequence. Binding is late: a request waits in the one queue, and the choice is made again when
a worker has room. A worker never gets more than its credits, but for what it reads at once."""

import asyncio
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from msgspec import structs

from backends.wire import Grammar, Sampling
from gateway.errors import HeadwayError, NoWorker, Overloaded
from gateway.fleet.fleet import Fleet
from gateway.fleet.token_stream import TokenStream
from gateway.pipeline.placement_input import beginning, place_among_alike
from gateway.policy.routes import candidates_for
from gateway.policy.schema import Route, Slo
from gateway.request import Request
from gateway.routing.decide import decide
from gateway.routing.decision import Decision, RoutingRequest
from gateway.scheduling.admission import (
    DUE_SHARE,
    GOOD_ENOUGH,
    OnOverload,
    QueueEstimate,
    admit,
    foregone,
    predicted_s,
    slo_bound_s,
)
from gateway.scheduling.dequeue_rate import DequeueRate
from gateway.scheduling.fairness import LEVELS, TenantShares, is_kept
from gateway.scheduling.placement import Placement
from gateway.scheduling.request_queue import Band, QueuedRequest, RequestQueue
from gateway.scheduling.retention import WAITS_COLD
from gateway.scheduling.ttft_margin import TtftMargin
from gateway.scheduling.usual import Usual
from gateway.text.prompt_encoder import Prompt

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


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request from its question to its stream. `excluded` are workers that were lost while they had it."""

    decision_id: str
    question: RoutingRequest
    route: str
    prompts: dict[str, Prompt]
    sampling: Sampling
    tenant: str
    run: str
    chain: str
    band: Band
    attained: float
    arrival: float
    deadline: float
    slo: str = ""
    traceparent: str = ""
    decision: Decision | None = None
    residency_at: int = -1
    waiter: "asyncio.Future[TokenStream] | None" = None
    excluded: tuple[str, ...] = ()
    grammars: dict[str, Grammar] = field(default_factory=dict)
    """By worker, where the form of an answer differs by model; elsewhere the sampling's own holds."""
    escalated: bool = False
    request: Request | None = None
    """What an upstream is sent; workers take the prompts."""
    budgets: tuple[str, ...] = ()
    on_overload: OnOverload = "queue"
    admitted_run: bool = False
    """It continues a run that was let in, and is never refused for a promise."""
    admitted: bool = False
    stands_until: float = -math.inf
    """Its choice, while its worker has no seat or no room."""
    promised_s: float = math.inf
    """How long after its arrival its first token may come, where that was judged."""
    predicted: tuple[str, float, float] | None = None
    """The worker that was expected to take it, how long after its arrival its first token was expected, and when that was
    predicted; until it came."""
    degraded: bool = False
    elsewhere: str = ""
    """The worker that keeps the promise which the best one would break."""
    waits_for: str | None = None
    """The worker for which it counts as waiting."""
    names: list[Sequence[bytes]] = field(init=False)
    """Of the prompt's pages, once for each way in which some model's tokenizer reads it."""

    def __post_init__(self) -> None:
        self.names = list({id(prompt.names): prompt.names for prompt in self.prompts.values()}.values())

    @property
    def due(self) -> float:
        """From when on half of what it was promised is used up; for batch work, of the time that it may wait at all where that
        is less."""
        most_s = min(self.promised_s, self.deadline - self.arrival) if self.band is Band.BATCH else self.promised_s
        return self.arrival + DUE_SHARE * most_s


class FlowKey(NamedTuple):
    """Requests that are expected to go to the same models."""

    tenant: str
    route: str
    slo: str
    asked: str


class Unread(NamedTuple):
    """A request of which nobody knows yet how long it is: about so many tokens, and at most so many. `is_certain` when its
    route does not depend on that, and it asks for nothing that only some models can do."""

    tenant: str
    route: Route
    slo: Slo
    band: Band
    asked: str
    arrival: float
    about_tokens: float
    most_tokens: float
    is_certain: bool

    @property
    def kind(self) -> FlowKey:
        return FlowKey(self.tenant, self.route.name, self.route.slo, self.asked)


class SeatClass(NamedTuple):
    """All of a ticket that says which seats it may have: `judged` where promises are, `late` for batch work that has used up
    half of its time to wait."""

    tenant: str
    line: Band
    judged: bool
    late: bool


class DispatchPass:
    """One look at those that wait: a `thorough` one at all of them, else not at lines whose workers have no seat for them.
    `full`: workers for which the first in order has to wait, with its priority there, so that who comes after it and would not
    be read before it does not go past. `seats`: whether a worker has one for a kind. How many of each line were decided anew
    (`num`), or `seen`; and lines in which nobody can go (`shut`), or somebody may (`open`)."""

    def __init__(self, *, thorough: bool) -> None:
        self.thorough = thorough
        self.full: dict[str, int] = {}
        self.seats: dict[tuple[str, SeatClass], bool] = {}
        self.num = Counter[tuple[str, Band]]()
        self.seen = Counter[tuple[str, Band]]()
        self.shut, self.open = set[tuple[str, Band]](), set[tuple[str, Band]]()

    def taken(self) -> None:
        """Somebody took a seat: who may have the next is another question."""
        self.seats.clear()
        self.seen.clear()
        self.open.clear()


class Dispatcher:
    def __init__(self, fleet: Fleet, queue: RequestQueue, *, clock: Callable[[], float], retry_after_s: float = 1.0) -> None:
        self.fleet = fleet
        self.queue = queue
        self.placement = Placement()
        self.seats = TenantShares(queue.weight)
        self._clock = clock
        self._retry_after_s = retry_after_s
        self._numbers = itertools.count(1)
        self._waiting: dict[int, PendingRequest] = {}
        self._pump_planned = False
        self._refreshed_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self.lateness: defaultdict[tuple[str, bool], TtftMargin] = defaultdict(TtftMargin)
        """By worker, and whether it is batch work."""
        self._waiting_for = Counter[tuple[str, str, bool]]()
        """How many, by the worker that was chosen last, tenant, and whether it is batch work."""
        self._drains: defaultdict[str, DequeueRate] = defaultdict(DequeueRate)
        """Of batch work, by worker."""
        self._devices = {name: worker.device for name, worker in fleet.policy.workers.items()}
        self._let_in: dict[str, TokenStream] = {}
        """The batch work that a worker's last seats were not left by, as it had waited too long."""
        self._usual = Usual()
        fleet.changed = self.changed

    def decide(self, ticket: PendingRequest) -> Decision:
        """The choice as the world is now. Raises UnknownModel, ContextTooLong or NoWorker."""
        cached: dict[str, int] = {}
        for names in ticket.names:
            cached |= self.fleet.holders(names)
        for name in self.fleet.upstreams:
            if prompt := ticket.prompts.get(name):
                cached[name] = self.fleet.cached_tokens(name, prompt.names)
        question = structs.replace(ticket.question, cached_tokens=cached, excluded_workers=ticket.excluded)
        views, whole = self.fleet.candidates(question)
        decision = decide(question, views, decision_id=ticket.decision_id, route=ticket.route, whole=whole)
        if ticket.escalated or ticket.degraded:
            decision = structs.replace(decision, reason="escalated" if ticket.escalated else "degraded")
        now = self._clock()
        decision = place_among_alike(
            self.placement, self.fleet, question, decision, ticket.prompts, chain=ticket.chain, now=now
        )
        there = ticket.elsewhere
        if there and any(one.option.worker == there and one.reason in GOOD_ENOUGH for one in decision.rejected):
            return decision.moved(there, "breaks_promise")
        return decision

    @property
    def refuses(self) -> bool:
        """Somebody, for a promise, lately."""
        return self._usual.refuses(self._clock())

    def foregone(self, unread: Unread) -> Overloaded | None:
        """The no that a request gets unread: it is what those like it are being told, and waiting alone breaks its promise."""
        now, kind, route = self._clock(), unread.kind, unread.route
        usual = self._usual.models(kind, now)
        if route.on_overload != "shed" or route.escalate is not None or not usual:
            return None
        offered = candidates_for(self.fleet.policy, route, tenant=unread.tenant)
        views = [view for view in self.fleet.views() if view.model in offered]
        if any(unread.most_tokens >= view.max_context for view in views):
            return None
        broken, late_s = foregone(
            unread.slo.ttft_s,
            unread.slo.deadline_s,
            views,
            self._waits(unread.tenant, unread.band),
            usual=usual,
            about_tokens=unread.about_tokens,
            most_tokens=unread.most_tokens,
            waited_s=now - unread.arrival,
            devices=self._devices,
        )
        if not broken:
            return None
        self.seats.came(unread.tenant, now)
        return _shed(broken, late_s)

    def wants_to_read(self, unread: Unread) -> bool:
        """One in so many that could be refused unread, by which it is learned whether that still holds."""
        return self._usual.wants_to_know(unread.kind)

    def full(self) -> Overloaded:
        message = (
            f"{len(self.queue):,} requests with {self.queue.uncached_tokens:,} tokens to read are waiting already, which is the"
            " limit: try again"
        )
        return Overloaded(message, retry_after_s=self._retry_after_s)

    async def place(self, ticket: PendingRequest) -> TokenStream:
        """Submits when the chosen worker has room, else waits. Raises NoWorker, or Overloaded: at once where the route sheds
        what it cannot keep its promise to, or after too long a wait."""
        ticket.decision = self.decide(ticket)
        self.seats.came(ticket.tenant, self._clock())
        if not ticket.admitted:
            self._admit(ticket, ticket.decision)
        kind = self._kind(ticket)
        fits = self._has_room(kind, ticket.decision) and not self._leaves(kind, ticket.decision.chosen.worker)
        if fits and not self._waiting:
            return self._submit(ticket, ticket.decision)
        return await self._wait(ticket, ticket.decision, fits=fits)

    def _admit(self, ticket: PendingRequest, decision: Decision) -> None:
        ticket.admitted = True
        if ticket.on_overload == "queue":
            return
        now, kind = self._clock(), FlowKey(ticket.tenant, ticket.route, ticket.slo, ticket.question.asked)
        if not ticket.admitted_run:
            self._usual.chose(kind, decision.chosen.model)
        waits, waited_s = self._waits(ticket.tenant, ticket.band), now - ticket.arrival
        verdict = admit(
            ticket.question,
            decision,
            waits,
            on_overload=ticket.on_overload,
            admitted_run=ticket.admitted_run,
            waited_s=waited_s,
            devices=self._devices,
        )
        if verdict.action == "shed":
            self._usual.refused(kind, now)
            raise _shed(verdict.broken, verdict.late_s)
        if verdict.action == "admit" and verdict.instead is not None:
            ticket.elsewhere = verdict.instead.worker
            decision = ticket.decision = decision.moved(ticket.elsewhere, "breaks_promise")
        elif verdict.instead is not None:
            ticket.degraded = True
            question = ticket.question
            ticket.question = structs.replace(
                question, candidates=(verdict.instead.model,), fallbacks=question.candidates, escalations={}
            )
            decision = ticket.decision = self.decide(ticket)
        chosen = decision.chosen
        wait = waits[chosen.worker]
        ticket.promised_s = slo_bound_s(ticket.question, chosen, wait)
        ticket.predicted = chosen.worker, waited_s + predicted_s(chosen, wait), now

    def _waits(self, tenant: str, band: Band) -> dict[str, QueueEstimate]:
        now, is_batch = self._clock(), band is Band.BATCH
        ahead = self._ahead(tenant, is_batch=is_batch)
        waits = {}
        for view in self.fleet.views():
            predictor = self.fleet.predictors[view.worker]
            running_s = predictor.wait_s(max_sequences=view.max_sequences, queued_tokens=0, now=now)
            turns_s = predictor.turns_s(ahead.get(view.worker, 0.0))
            margin = self.lateness[view.worker, is_batch].margin(now)
            idle = not predictor.running and not turns_s
            lately_s = self._drains[view.worker].wait_s(ahead.get(view.worker, 0.0), now) if is_batch else 0.0
            waits[view.worker] = QueueEstimate(view.wait_s, running_s + turns_s, margin, idle, lately_s)
        return waits

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

    def began(self, ticket: PendingRequest, ttft_s: float) -> None:
        """Its first token came so long after its arrival: predictions learn from it."""
        if ticket.predicted is not None:
            worker, predicted, at = ticket.predicted
            ticket.predicted = None
            self.lateness[worker, ticket.band is Band.BATCH].observe(predicted, ttft_s, self._clock(), predicted_at=at)

    async def _wait(self, ticket: PendingRequest, decision: Decision, *, fits: bool) -> TokenStream:
        """`fits`: its worker could take it at once, if nobody goes before it."""
        number = next(self._numbers)
        chosen = decision.chosen
        uncached = chosen.prompt_tokens - chosen.cached_tokens
        by_run = self._by_run
        item = QueuedRequest(
            request=number,
            tenant=ticket.tenant if by_run else "",
            run=ticket.run,
            band=ticket.band if by_run else Band.AGENT_TURN,
            arrival=ticket.arrival,
            deadline=ticket.deadline,
            uncached_tokens=uncached,
            resident=2 * chosen.cached_tokens >= chosen.prompt_tokens or not by_run,
            attained_s=ticket.attained * self._prefill_s(chosen.worker) if by_run else 0.0,
            num_bytes=sum(len(prompt.data) for prompt in ticket.prompts.values()),
            admitted_run=ticket.admitted_run,
            due=ticket.due,
            broken=ticket.arrival + ticket.promised_s,
        )
        if not self._push(item):
            raise self.full()
        waiter = ticket.waiter = asyncio.get_running_loop().create_future()
        self._waiting[number] = ticket
        self._chose(ticket, chosen.worker)
        self._stands(ticket, self._clock())
        # Batch work goes after the rest, which does not wait for it.
        queued = 0 if ticket.band is Band.BATCH else uncached
        self.fleet.queue(chosen.worker, queued)
        if chosen.cached_tokens and not item.resident:  # what is left of it makes room for others while it waits
            self.fleet.retain(chosen.worker, ticket.chain, WAITS_COLD)
        self._plan_expiry()
        if fits:
            self._pump()  # now: it is likely the next, and the loop may take a while to come round
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
            self._chose(ticket, None)
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
            last = self.queue.give_way(item)
            if last is None:
                break
            waiter = self._waiting[last.request].waiter
            if waiter and not waiter.done():
                first = "turns of runs that have begun go" if item.admitted_run else "tenants with less in it go"
                message = f"the queue is full, and {first} first: try again"
                waiter.set_exception(Overloaded(message, retry_after_s=self._retry_after_s))
        return pushed

    def _chose(self, ticket: PendingRequest, worker: str | None, *, begins: bool = False) -> None:
        """What waits counts for the worker that was chosen last, until it waits no more."""
        is_batch, before = ticket.band is Band.BATCH, ticket.waits_for
        if before == worker:
            return
        ticket.waits_for = worker
        if before is not None:
            key = before, ticket.tenant, is_batch
            self._waiting_for[key] -= 1
            if not self._waiting_for[key]:
                del self._waiting_for[key]
            if is_batch and begins:
                others = any(name == before and other for name, _, other in self._waiting_for)
                self._drains[before].began(self._clock(), others=others)
        if worker is not None:
            self._waiting_for[worker, ticket.tenant, is_batch] += 1
            if is_batch:
                self._drains[worker].waits(self._clock())

    def changed(self) -> None:
        """A worker may have room: look once, after all frames at hand are read."""
        if self._waiting and not self._pump_planned:
            self._pump_planned = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        now, prefill_rate = self._clock(), self.fleet.prefill_rate()
        look = DispatchPass(thorough=now - self._refreshed_at >= REFRESH_EVERY_S)
        if look.thorough:
            self._refreshed_at = now
            self._refresh()
        outcome: Decision | HeadwayError | None = None

        def ready(item: QueuedRequest) -> bool:
            nonlocal outcome
            ticket = self._waiting[item.request]
            line = item.tenant, item.band.line
            look.seen[line] += 1
            if look.num[line] >= MAX_DECISIONS_A_LINE:
                return False
            kind = self._kind(ticket)
            if not self._may_go(ticket, kind, look, now):
                if not kind.late and not any(self._has_seat(kind, name, look) for name in self.fleet.predictors):
                    look.shut.add(line)
                return False
            look.num[line] += 1
            try:
                outcome = self.decide(ticket)
            except HeadwayError as error:
                outcome = error
                return True
            ticket.decision = outcome
            self._stands(ticket, now)
            self._chose(ticket, outcome.chosen.worker)
            return self._finds_room(ticket, kind, outcome, look, now)

        def closed(tenant: str, band: Band) -> bool:
            line = tenant, band
            if line in look.shut or look.num[line] >= MAX_DECISIONS_A_LINE or look.seen[line] >= MAX_SEEN_A_LINE:
                return True
            return not look.thorough and self._by_run and self._cannot_go(tenant, band, look)

        while (item := self.queue.pop(ready, now=now, prefill_rate=prefill_rate, closed=closed)) is not None:
            ticket = self._waiting.pop(item.request)
            self._chose(ticket, None, begins=True)
            assert ticket.waiter and outcome
            if ticket.waiter.done():
                continue
            if isinstance(outcome, HeadwayError):
                ticket.waiter.set_exception(outcome)
            else:
                ticket.waiter.set_result(self._submit(ticket, outcome))
                look.taken()

    def _stands(self, ticket: PendingRequest, now: float) -> None:
        ticket.stands_until = now + max(DECIDED_FOR_S, DECIDED_SHARE * (now - ticket.arrival))

    def _refresh(self) -> None:
        """The order is that of what is resident now, of those that have waited longest."""
        for number in self.queue.requests()[:MAX_REFRESHED]:
            ticket = self._waiting[number]
            assert ticket.decision
            chosen = ticket.decision.chosen
            cached = self.fleet.cached_tokens(chosen.worker, ticket.prompts[chosen.worker].names)
            uncached = chosen.prompt_tokens - cached
            resident = 2 * cached >= chosen.prompt_tokens or not self._by_run
            self.queue.refresh(number, uncached_tokens=uncached, resident=resident)

    def _cannot_go(self, tenant: str, line: Band, look: "DispatchPass") -> bool:
        """Whether the workers that were chosen for those in a line have no seat for them."""
        if (tenant, line) in look.open:
            return False
        workers = {name for name, one, is_batch in self._waiting_for if one == tenant and is_batch == (line is Band.BATCH)}
        kinds = [SeatClass(tenant, line, judged, late=False) for judged in (False, True)]
        may = any(self._has_seat(kind, name, look) for name in workers for kind in kinds)
        (look.open if may else look.shut).add((tenant, line))
        return not may

    def _may_go(self, ticket: PendingRequest, kind: SeatClass, look: "DispatchPass", now: float) -> bool:
        """A cheap look before deciding: the worker that was chosen lately, or else any, has a seat for it, or none is up, which
        is to be told."""
        if ticket.decision and now < ticket.stands_until and self.fleet.server(ticket.decision.chosen.worker).healthy:
            return self._finds_room(ticket, kind, ticket.decision, look, now)
        workers = [worker for worker in ticket.prompts if worker not in ticket.excluded]
        if any(self._has_seat(kind, worker, look) for worker in workers):
            return True
        return not any(self.fleet.server(worker).healthy for worker in workers)

    def _kind(self, ticket: PendingRequest) -> SeatClass:
        late = ticket.band is Band.BATCH and self._clock() >= ticket.due
        return SeatClass(ticket.tenant, ticket.band.line, ticket.on_overload != "queue", late)

    def _has_seat(self, kind: SeatClass, worker: str, look: "DispatchPass") -> bool:
        """Whether it has one, and for these."""
        key = worker, kind
        if key not in look.seats:
            free = self.fleet.server(worker).credits.num_free >= 1 and not self._leaves(kind, worker)
            look.seats[key] = free and self._priority(kind, worker) < look.full.get(worker, math.inf)
        return look.seats[key]

    def _finds_room(
        self, ticket: PendingRequest, kind: SeatClass, decision: Decision, look: "DispatchPass", now: float
    ) -> bool:
        """A seat, and room for its prompt. Who has waited long for the latter is not gone past."""
        worker = decision.chosen.worker
        if not self._has_seat(kind, worker, look):
            return False
        room = self._has_room(kind, decision)
        if not room and now - ticket.arrival >= NOT_PASSED_AFTER_S:
            look.full[worker] = self._priority(kind, worker)
            look.seats.clear()
        return room

    def _has_room(self, kind: SeatClass, decision: Decision) -> bool:
        chosen = decision.chosen
        uncached = chosen.prompt_tokens - chosen.cached_tokens
        return self.fleet.server(chosen.worker).credits.has_room(uncached, self._priority(kind, chosen.worker))

    def _leaves(self, kind: SeatClass, worker: str) -> bool:
        """The last seats: batch work leaves them to those who were promised a soon first token, where promises are judged, but
        for one at a time that has waited for half of what it was promised; and a tenant that has its share to the others."""
        hello = self.fleet.links[worker].hello if worker in self.fleet.links else None
        if not hello or not self._by_run:
            return False
        credits = self.fleet.links[worker].credits
        if not credits.live or not is_kept(credits.num_free, hello.max_sequences):
            return False
        if kind.line is Band.BATCH and kind.judged:
            let_in = self._let_in.get(worker)
            return not kind.late or (let_in is not None and let_in.finished is None)
        return self.seats.has_its_share(kind.tenant, credits.taken, hello.max_sequences, self._clock())

    def _submit(self, ticket: PendingRequest, decision: Decision) -> TokenStream:
        worker = decision.chosen.worker
        uncached = decision.chosen.prompt_tokens - decision.chosen.cached_tokens
        ticket.decision = decision
        ticket.residency_at = self.fleet.residency.sequence(worker)
        sampling = ticket.sampling
        if worker in self.fleet.upstreams:
            assert ticket.request
            stream = self.fleet.upstreams[worker].submit(
                ticket.request,
                sampling,
                prompt_tokens=decision.chosen.prompt_tokens,
                chain=ticket.chain,
                traceparent=ticket.traceparent,
            )
            stream.on_first = partial(self.fleet.predictors[worker].first_token, stream.request)
            return stream
        if grammar := ticket.grammars.get(worker):
            sampling = structs.replace(sampling, grammar=grammar)
        chosen, kind = decision.chosen, self._kind(ticket)
        if chosen.held_tokens:
            sampling = structs.replace(sampling, confidence=True)
        stream = self.fleet.links[worker].submit(
            ticket.prompts[worker].data,
            sampling,
            shared_tokens=ticket.prompts[worker].shared_tokens,
            uncached_tokens=uncached,
            priority=self._priority(kind, worker),
            salt=ticket.tenant,
            chain=ticket.chain,
            traceparent=ticket.traceparent,
        )
        if kind.late:
            self._let_in[worker] = stream
        if chosen.held_tokens:
            stream.hold_back(chosen.held_tokens, chosen.anew_below)
        predictor, hello = self.fleet.predictors[worker], self.fleet.links[worker].hello
        stream.on_first = partial(predictor.first_token, stream.request)
        wait_s = predictor.wait_s(max_sequences=hello.max_sequences if hello else 1, queued_tokens=0, now=self._clock())
        predictor.submitted(stream.request, uncached, wait_s=wait_s)
        tokens = decision.chosen.prompt_tokens + min(sampling.max_tokens, int(ticket.question.expected_output_tokens))
        self.fleet.footprints.runs(worker, ticket.chain, tokens)
        if prefix := beginning(ticket.prompts[worker].names):
            self.placement.went(worker, self._clock(), prefix=prefix)
        return stream

    def _priority(self, kind: SeatClass, worker: str) -> int:
        """At the worker, where lower goes first: by band, and in a band who has less of its share of the seats. Batch work that
        has waited for half of what it was promised goes with the turns of agents."""
        if not self._by_run or worker not in self.fleet.links:
            return 0
        link = self.fleet.links[worker]
        total = link.hello.max_sequences if link.hello else 1
        level = self.seats.level(kind.tenant, link.credits.taken, total, self._clock())
        return LEVELS * int(Band.AGENT_TURN if kind.late else kind.line) + level

    def _plan_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(EXPIRE_EVERY_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._clock()
        for item in self.queue.expire(now):
            ticket = self._waiting.pop(item.request)
            if ticket.waiter and not ticket.waiter.done():
                waited = now - item.arrival
                self.began(ticket, waited)  # if not later
                ticket.waiter.set_exception(
                    Overloaded(
                        f"no worker had room for {waited:.0f} s, the longest that this policy lets a request wait: try again",
                        retry_after_s=self._retry_after_s,
                    )
                )
        if self._waiting:
            self.changed()
            self._plan_expiry()

    def lost_all(self) -> NoWorker:
        return NoWorker("every worker that could have taken it was lost: try again", retry_after_s=self._retry_after_s)


def _shed(broken: str, late_s: float) -> Overloaded:
    return Overloaded(f"{broken}: try again later", retry_after_s=max(MIN_RETRY_S, late_s))
