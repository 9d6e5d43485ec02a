"""The life of a request: tenant, parse, run, text, question, decision, queue, worker, first frame, account.

What is here knows no HTTP: the answer is written elsewhere, from the stream of the call that `start` leaves running.
"""

import itertools
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import msgspec

from backends.wire import Finished
from gateway.api.chat import parse_chat
from gateway.errors import BadRequest, ContextTooLong, HeadwayError, NoWorker, UnsupportedParameter, WorkerLost
from gateway.fleet.fleet import Fleet
from gateway.fleet.token_stream import TokenStream
from gateway.fleet.upstream import Upstream
from gateway.metering.budget_need import budget_need
from gateway.metering.budgets import Payers, Reservation
from gateway.parsers.grammar import grammars_for
from gateway.parsers.output_format import OutputFormat
from gateway.pipeline.active_request import ActiveRequest, ClientGone, RequestContext
from gateway.pipeline.dispatcher import Dispatcher, PendingRequest, Unread
from gateway.pipeline.ids import RandomIds
from gateway.pipeline.recorder import RequestRecorder
from gateway.pipeline.tokenize_limiter import TokenizeLimiter
from gateway.policy.routes import candidates_for, check_asked, find_route
from gateway.policy.schema import Policy, Route, Slo
from gateway.policy.slo import slo_of
from gateway.policy.validate import AUTO
from gateway.request import Request
from gateway.routing.decision import Decision, RoutingRequest
from gateway.routing.escalation import Escalation
from gateway.routing.routing_request import routing_request_for
from gateway.runs.identity import Identity, identify, mint_id, public_id
from gateway.runs.registry import Chain, Run, RunRegistry, in_tool_loop
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.scheduling.latency_model import OutputLengths
from gateway.scheduling.request_queue import Band
from gateway.telemetry.record import LostAttempt
from gateway.telemetry.trace_context import trace_of
from gateway.text.normalize import normalized
from gateway.text.prompt_encoder import Prompt, PromptEncoder, Target, check_length, target_of, token_limit_of, total_chars

DEFAULT_MAX_TOKENS = 2048
CHARACTERS_A_TOKEN = 4
MAX_ATTEMPTS = 4
MAX_REFUSALS = 20
"""A worker refuses only what crossed its last report on the way; more often than this, something is wrong."""

Judge = Callable[[Request], dict[str, float]]


class Pipeline:
    """`judge` estimates quality by tier. Everything it is given is closed by whoever gave it."""

    def __init__(
        self,
        policy: Policy,
        fleet: Fleet,
        dispatcher: Dispatcher,
        runs: RunRegistry,
        keeper: RetentionPublisher,
        prompts: PromptEncoder,
        books: RequestRecorder,
        lengths: OutputLengths,
        judge: Judge,
        escalations: Mapping[str, Escalation] = MappingProxyType({}),
    ) -> None:
        """`escalations` are what was fitted, by tier."""
        self.escalations = escalations
        self.policy, self.fleet, self.dispatcher, self.runs = policy, fleet, dispatcher, runs
        self.keeper, self.prompts, self.books, self.lengths, self.judge = keeper, prompts, books, lengths, judge
        self.secret = secrets.token_bytes(32)
        self._ids = RandomIds(os.urandom, time.time)
        self._answers = itertools.count()
        self._pace = TokenizeLimiter()
        self.stopping = False

    async def open(
        self, request: Request, arrival: RequestContext, tenant: str, *, id_prefix: str = "chatcmpl-"
    ) -> list[ActiveRequest]:
        """A call for each choice. Raises what a caller did wrong: BadRequest, UnknownModel, Forbidden; or
        OverBudget or RateLimited; Overloaded where it is told no unread; or NoWorker while the gateway stops."""
        self._check_running()
        check_asked(self.policy, asked=request.model, tenant=tenant)
        request = normalized(request, self.policy.text)
        identity = self.identity(request, arrival, tenant)
        run, chain = self.runs.touch(identity, tenant=tenant, now=arrival.at)
        may_go = partial(self._turn_away, request, arrival, tenant, identity, run, chain)
        await self._pace.turn(may_go, tenant=tenant, first=bool(run.turns))
        ticket, slo = await self.ticket(request, arrival, tenant, identity, chain, attained=run.attained)
        tokens = self._hold_tokens(ticket, request, arrival)
        id = mint_id(self.secret, chain.name, next(self._answers), tenant=tenant, prefix=id_prefix)
        payers = Payers(tenant, arrival.key_id, public_id(identity.run))
        if holds := self._hold(ticket, request.num_choices, payers, arrival):
            self.books.held(id, ticket.route, payers, holds, arrival.wall_ns / 1e9)
        self.keeper.arrived(chain, arrival.at)
        if identity.source in ("new", "history", "traceparent", "text"):
            self.runs.sent(chain, request.messages, tenant=tenant, trace=trace_of(arrival.headers))
        tickets = [ticket, *(_again(ticket, n, self._ids.take()) for n in range(1, request.num_choices))]
        calls = [ActiveRequest(id, arrival, tenant, request, identity, run, chain, slo, one) for one in tickets]
        for call in calls:
            self.runs.opened(run)
            call.came_from = chain.warm_worker
            call.is_extra = call is not calls[0]
            call.hold, call.held_tokens = holds.pop() if holds else None, tokens
            self.books.begin(call)
        return calls

    def _check_running(self) -> None:
        if self.stopping:
            raise NoWorker("this gateway is stopping: try again", retry_after_s=1.0)

    def _turn_away(
        self, request: Request, arrival: RequestContext, tenant: str, identity: Identity, run: Run, chain: Chain
    ) -> None:
        """Raises the no that a request gets before anybody reads what it asks, if that is known. Turns of a run go on."""
        self._check_running()
        if run.turns or arrival.is_read:
            return
        is_full = self.dispatcher.queue.is_full_of(tenant)
        if not (is_full or self.dispatcher.refuses):
            return
        unread = self._unread(request, arrival, tenant, identity, chain)
        if unread is None:
            return
        refusal = self.dispatcher.full() if is_full else self.dispatcher.foregone(unread) if unread.is_certain else None
        if refusal is None:
            return
        arrival.is_read = not is_full and self.dispatcher.wants_to_read(unread)
        if not arrival.is_read:
            arrival.slo = unread.route.slo
            raise refusal

    def _unread(
        self, request: Request, arrival: RequestContext, tenant: str, identity: Identity, chain: Chain
    ) -> Unread | None:
        """What is known of it from the outside; None where it may be wrong altogether."""
        num_chars = total_chars(request)
        about_tokens, most_tokens = num_chars // CHARACTERS_A_TOKEN, token_limit_of(request, num_chars)
        try:
            route, slo = self._route(request, arrival, tenant, identity, prompt_tokens=about_tokens)
            other, _ = self._route(request, arrival, tenant, identity, prompt_tokens=most_tokens)
            least, _ = self._route(request, arrival, tenant, identity, prompt_tokens=0)
        except HeadwayError:  # it takes an exact look to be sure of that
            return None
        is_certain = route.name == other.name == least.name and not request.has_grammar
        band = _band(route.slo, self.policy.slo[route.slo], chain, request)
        return Unread(tenant, route, slo, band, request.model, arrival.at, about_tokens, most_tokens, is_certain)

    def _hold(self, ticket: PendingRequest, num_choices: int, payers: Payers, arrival: RequestContext) -> list[Reservation]:
        """One for each choice, where the route has budgets; a turn is one, however many its choices."""
        if not ticket.budgets:
            return []
        views = self.fleet.views()
        wanted = [budget_need(ticket.question, views, turns=turns) for turns in [0] * (num_choices - 1) + [1]]
        return self.books.budgets.hold(ticket.budgets, payers, wanted, arrival.wall_ns / 1e9)

    def _hold_tokens(self, ticket: PendingRequest, request: Request, arrival: RequestContext) -> int:
        """Of what its key and tenant may take a minute, for each choice: the prompt, and the answer as it was asked for or else
        as it is expected."""
        if arrival.passed is None:
            return 0
        question = ticket.question
        output = question.max_output_tokens if request.max_tokens_given else math.ceil(question.expected_output_tokens)
        tokens = max(question.prompt_tokens.values(), default=0) + output
        self.books.rates.hold(arrival.passed, arrival.limited, [tokens] * request.num_choices, time.monotonic())
        return tokens

    def family(self, worker: str) -> OutputFormat:
        """How the model of a worker writes, as the policy says or its chat template shows."""
        if worker in self.fleet.upstreams:
            return OutputFormat(calls="said")
        model = self.policy.models[self.policy.workers[worker].model]
        text = self.fleet.links[worker].text
        family = text.family if text else OutputFormat()
        if model.tool_calls != "auto":
            family = family._replace(calls=model.tool_calls)
        return family if model.reasoning == "auto" else family._replace(thinks=model.reasoning)

    def identity(self, request: Request, arrival: RequestContext, tenant: str) -> Identity:
        said = identify(arrival.headers, request.hints, tenant=tenant)
        if said is not None:
            return said
        return self.runs.infer(
            request.messages,
            tenant=tenant,
            secret=self.secret,
            random_id=self._ids.take(),
            trace=trace_of(arrival.headers),
            previous=dict(request.hints).get("previous_response_id", ""),
        )

    async def ticket(
        self,
        request: Request,
        arrival: RequestContext,
        tenant: str,
        identity: Identity,
        chain: Chain | None,
        *,
        attained: float,
    ) -> tuple[PendingRequest, Slo]:
        prompts = await self._prompts(request, identity.chain, tenant)
        longest = max((prompt.num_tokens for prompt in prompts.values()), default=0)
        route, slo = self._route(request, arrival, tenant, identity, prompt_tokens=longest)
        question = self._question(request, chain, route, slo, prompts, tenant)
        ticket = PendingRequest(
            decision_id=f"dec-{self._ids.take()}",
            question=question,
            route=route.name,
            request=request,
            prompts=prompts,
            sampling=request.sampling,
            tenant=tenant,
            run=identity.run,
            chain=identity.chain,
            band=_band(route.slo, self.policy.slo[route.slo], chain, request),
            attained=attained,
            arrival=arrival.at,
            deadline=arrival.at + min(self.policy.limits.max_queue_s, slo.deadline_s or float("inf")),
            grammars=grammars_for(request, (worker for worker in prompts if worker in self.fleet.links), self.family),
            slo=route.slo,
            budgets=route.budgets,
            on_overload=route.on_overload,
            admitted_run=(run := self.runs.get(identity.run)) is not None and run.turns > 0,
        )
        return ticket, slo

    def _route(
        self, request: Request, arrival: RequestContext, tenant: str, identity: Identity, *, prompt_tokens: int
    ) -> tuple[Route, Slo]:
        route = find_route(
            self.policy,
            asked=request.model,
            tenant=tenant,
            has_tools=bool(request.tools),
            prompt_tokens=prompt_tokens,
            headers=arrival.headers,
            key_id=arrival.key_id,
            run=identity.run,
        )
        return slo_of(self.policy, route, tenant=tenant, headers=arrival.headers, service_tier=request.service_tier)

    async def _prompts(self, request: Request, chain: str, tenant: str) -> dict[str, Prompt]:
        """For every worker that might take it and is up."""
        upstreams = self._upstreams(request)
        targets = self._capable(request, instead=bool(upstreams))
        if not upstreams:
            check_length(request, targets)
        known = self.policy.tenants.get(tenant)
        shares = known is not None and known.share_prefix == "system"
        prompts = await self.prompts.build(request, targets, chain=chain, salt=tenant, shares_system=shares)
        return prompts | {one.name: one.prompt(request, chain) for one in upstreams}

    def _upstreams(self, request: Request) -> list[Upstream]:
        """Those that can do what is asked."""
        asked = [one for one in self.fleet.upstreams.values() if request.model in (AUTO, one.policy.model, one.policy.tier)]
        able = [one for one in asked if one.lacks(request) is None]
        if asked and not able and not self._targets(request.model):
            param = asked[0].lacks(request)
            raise UnsupportedParameter(
                f"{param}: no upstream that you may be answered by can do this: leave it out", param=param
            )
        return able

    def _capable(self, request: Request, *, instead: bool) -> list[Target]:
        """Raises UnsupportedParameter when none of those that are up can do what is asked, and nobody is there `instead`."""
        targets = self._targets(request.model)
        if request.has_grammar:
            hellos = {target.worker: self.fleet.links[target.worker].hello for target in targets}
            param = request.calls.param if request.calls else "response_format"
            able = [t for t in targets if (hello := hellos[t.worker]) is not None and hello.grammars]
            targets = _those(targets, able, param, instead=instead)
        if request.reasoning_effort not in (None, "none"):
            able = [target for target in targets if target.text.family.has_effort]
            targets = _those(targets, able, request.effort_param, instead=instead)
        return targets

    async def count(self, request: Request, tenant: str) -> int:
        """Prompt tokens, for the model that counts most of those that may answer. Raises BadRequest or NoWorker."""
        check_asked(self.policy, asked=request.model, tenant=tenant)
        prompts = await self._prompts(normalized(request, self.policy.text), "", tenant)
        if not prompts:
            raise NoWorker("no worker is up that could count: try again", retry_after_s=1.0)
        return max(prompt.num_tokens for prompt in prompts.values())

    def _targets(self, asked: str) -> list[Target]:
        targets = []
        for name, worker in self.policy.workers.items():
            if asked in (AUTO, worker.model, self.policy.models[worker.model].tier):
                target = target_of(self.fleet.links[name])
                if target:
                    targets.append(target)
        return targets

    def _question(
        self,
        request: Request,
        chain: Chain | None,
        route: Route,
        slo: Slo,
        prompts: dict[str, Prompt],
        tenant: str,
    ) -> RoutingRequest:
        locked = chain.locked_model if chain and route.lock_tool_loop and in_tool_loop(request.messages) else None
        candidates = candidates_for(self.policy, route, tenant=tenant)
        tiers = self.policy.tier_by_model()
        # A choice of one needs no judgement, and judging is the dearest part of deciding.
        undecided = request.model == AUTO and locked is None
        undecided = undecided and len({tiers[model] for model in candidates}) > 1
        return routing_request_for(
            self.policy,
            route,
            slo,
            asked=request.model,
            tenant=tenant,
            prompt_tokens={worker: prompt.num_tokens for worker, prompt in prompts.items()},
            cached_tokens={},
            quality=self.judge(request) if undecided else {},
            max_output_tokens=request.sampling.max_tokens,
            expected_output_tokens=self.lengths.expect(route.name, request.sampling.max_tokens),
            locked_model=locked,
            warm_worker=chain.warm_worker if chain else None,
            expected_remaining_turns=self.runs.expected_remaining_turns(chain) if chain else 0.0,
            has_tools=bool(request.tools),
            escalations=self.escalations if undecided else {},
        )

    async def start(self, call: ActiveRequest) -> None:
        """Returns when the call's stream has its first frame or its end. A worker lost before that is replaced.

        Raises NoWorker, Overloaded, ContextTooLong, BadRequest, WorkerLost or ClientGone.
        """
        refusals = 0
        while True:
            stream = await self._attempt(call)
            finished = stream.finished
            if call.gone:
                raise ClientGone("the client left")
            if stream.doubtful and await self._begin_anew(call, stream):
                continue
            finished = stream.finished
            if finished is None or call.first_at is not None or finished.reason in ("stop", "length"):
                return
            if finished.reason == "refused" and finished.error_code == "too_many" and refusals < MAX_REFUSALS:
                refusals += 1
                continue
            if finished.error_code not in ("worker_lost", "draining"):
                raise failure_of(finished)
            if call.num_attempts >= MAX_ATTEMPTS:
                raise self.dispatcher.lost_all()
            self._lose(call, stream, "failover")
            call.ticket.excluded += (stream.worker,)
            self.books.metrics.failovers.inc()

    async def _attempt(self, call: ActiveRequest) -> TokenStream:
        ticket = call.ticket
        ticket.waiter = None
        call.placed_at = call.placed_at or time.monotonic()
        try:
            stream = await self.dispatcher.place(ticket)
        except NoWorker:
            if ticket.excluded:
                raise self.dispatcher.lost_all() from None
            raise
        call.stream = stream
        call.num_attempts += 1
        call.submitted_at = time.monotonic()
        stream.on_begun = lambda: self._attempt_began(call)
        stream.on_finished = lambda finished: self._attempt_ended(call, finished)
        if call.gone:
            stream.abort()
        assert ticket.decision
        again = call.num_attempts > 1 or call.is_extra
        self.keeper.moved(call.chain, stream.worker)
        self.runs.dispatched(call.chain, model=ticket.decision.chosen.model, worker=stream.worker, again=again)
        if call.request.stream:
            while not (stream.begun or stream.finished or call.gone):
                await stream.wait_begun()
        else:
            while not (stream.doubtful or stream.finished or call.gone):
                await stream.wait_end()
        if ticket.decision.chosen.held_tokens:
            call.confidence = stream.confidence
        return stream

    def _attempt_began(self, call: ActiveRequest) -> None:
        call.first_at = time.monotonic()
        self.dispatcher.began(call.ticket, call.first_at - call.arrival.at)

    async def _begin_anew(self, call: ActiveRequest, stream: TokenStream) -> bool:
        """On the best tier, of which nothing has been sent yet; false when it is not there, and the answer stands."""
        ticket = call.ticket
        assert ticket.decision
        question = ticket.question
        lowest = question.quality.get(ticket.decision.chosen.tier, 0.0)
        better = {tier for tier, quality in question.quality.items() if quality > lowest}
        best = max(better, key=lambda tier: question.quality[tier], default=None)
        tiers = self.policy.tier_by_model()
        candidates = tuple(name for name in question.candidates if tiers.get(name) == best)
        anew = msgspec.structs.replace(question, candidates=candidates, fallbacks=(), escalations={})
        ticket.question = anew
        try:
            self.dispatcher.decide(ticket)
        except HeadwayError:
            ticket.question = msgspec.structs.replace(question, escalations={})
            return False
        stream.abort()
        while stream.finished is None:  # within one step: both attempts are charged, one after the other
            await stream.wait_end()
        self._lose(call, stream, "escalated")
        call.first_at, ticket.escalated = None, True
        return True

    def _lose(self, call: ActiveRequest, stream: TokenStream, why: str) -> None:
        """Remembers an attempt that was charged and gives no answer."""
        decision, charge = call.ticket.decision, call.charge
        if decision is None or charge is None:
            return
        call.lost.append(
            LostAttempt(
                worker=stream.worker,
                model=decision.chosen.model,
                why=why,
                started_s=call.submitted_at - call.arrival.at,
                ended_s=time.monotonic() - call.arrival.at,
                device_s=charge.device_s,
                usd=charge.usd,
                confidence=call.confidence,
            )
        )

    def _attempt_ended(self, call: ActiveRequest, finished: Finished) -> None:
        self.books.attempt_ended(call, finished)
        if call.detached:
            self._close(call, call.failure)

    def release(self, call: ActiveRequest, error: HeadwayError | None) -> None:
        """The answer is written, or will never be. What still runs is aborted, and accounted when it ends."""
        stream = call.stream
        if stream is not None and stream.finished is None:
            call.detached, call.failure = True, error
            stream.abort()
        else:
            self._close(call, error)

    def _close(self, call: ActiveRequest, error: HeadwayError | None) -> None:
        if error is None:
            self.books.close(call, "ok", 200)
            self._pauses(call)
        elif isinstance(error, ClientGone):
            self.books.close(call, "aborted", error.status, error.code)
        else:
            self.books.close(call, "rejected" if error.status < 500 else "failed", error.status, error.code)
        if call.run.is_final and self.runs.get(call.run.name) is not call.run:
            self.forget(call.run)

    def forget(self, run: Run) -> None:
        """It is over: nobody will come back for what is kept of it."""
        self.keeper.ended(run)
        self.prompts.forget(run.chains)

    def _pauses(self, call: ActiveRequest) -> None:
        """The run goes on, after a pause; of a sub-agent that is done, without it."""
        if call.finished is None or self.runs.get(call.run.name) is not call.run:
            return
        if call.identity.closes:
            if self.runs.end_chain(call.chain):
                self.keeper.chain_ended(call.chain)
            return
        calls = call.answer.tool_calls if call.answer else ()
        finish, tool = ("tool_calls", calls[-1].name) if calls else (call.finished.reason, "")
        self.keeper.finished(call.chain, time.monotonic(), finish=finish, tool=tool, keep_s=call.request.keep_s)

    async def explain(self, body: bytes, arrival: RequestContext, tenant: str) -> tuple[Request, Identity, Decision]:
        """The decision that the request would get now. Nothing is run, nothing remembered."""
        request = normalized(parse_chat(body, max_tokens_default=DEFAULT_MAX_TOKENS), self.policy.text)
        check_asked(self.policy, asked=request.model, tenant=tenant)
        identity = self.identity(request, arrival, tenant)
        run = self.runs.get(identity.run)
        chain = run.chains.get(identity.chain) if run else None
        ticket, _ = await self.ticket(request, arrival, tenant, identity, chain, attained=0.0)
        ticket.question = msgspec.structs.replace(ticket.question, quality=self.judge(request))
        return request, identity, self.dispatcher.decide(ticket)


def _those(targets: list[Target], able: list[Target], param: str, *, instead: bool) -> list[Target]:
    if targets and not able and not instead:
        raise UnsupportedParameter(f"{param}: no model that you may be answered by can do this: leave it out", param=param)
    return able


def _again(ticket: PendingRequest, number: int, id: str) -> PendingRequest:
    """The same question once more, for a further choice: with a seed of its own where one was given."""
    seed = ticket.sampling.seed
    sampling = ticket.sampling if seed is None else msgspec.structs.replace(ticket.sampling, seed=(seed + number) % 2**63)
    return replace(ticket, decision_id=f"dec-{id}", sampling=sampling)


def _band(slo_name: str, slo: Slo, chain: Chain | None, request: Request) -> Band:
    if slo.ttft_s is None:
        return Band.BATCH
    if slo_name == "interactive":
        return Band.INTERACTIVE
    continued = chain is not None and chain.turns > 0
    return Band.AGENT_TURN if continued or in_tool_loop(request.messages) else Band.NEW_RUN


def failure_of(finished: Finished) -> HeadwayError:
    """The error that a caller sees for an end that is no answer."""
    message = finished.error or f"the worker ended it: {finished.reason}"
    if finished.error_code == "worker_lost":
        return WorkerLost(f"{message}: try again")
    if finished.error_code in ("too_many", "draining"):
        return NoWorker(f"{message}: try again", retry_after_s=1.0)
    if finished.error_code == "too_long":
        return ContextTooLong(message, param="messages")
    if finished.error_code == "bad_grammar":
        return UnsupportedParameter(message, param=finished.error_param)
    if finished.reason == "refused":
        return BadRequest(message, param=finished.error_param or None)
    return HeadwayError(message)
