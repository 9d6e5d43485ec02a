"""From a parsed request to a pending one: identity, early shedding, tokens, route, SLO, reservations."""

import itertools
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec

from gateway.errors import HeadwayError, NoWorker, UnsupportedParameter
from gateway.fleet.fleet import Fleet
from gateway.fleet.upstream import Upstream
from gateway.fleet.worker_client import target_of
from gateway.metering.budgets import Payers, Reservation, budget_need
from gateway.parsers.grammar import grammars_for
from gateway.parsers.output_format import OutputFormat
from gateway.pipeline.active_request import ActiveRequest, RequestContext
from gateway.pipeline.dispatcher import Dispatcher
from gateway.pipeline.ids import RandomIds
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.recorder import RequestRecorder
from gateway.policy.routes import candidates_for, check_asked, find_route
from gateway.policy.schema import Policy, Route, Slo
from gateway.policy.slo import slo_of
from gateway.policy.validate import AUTO
from gateway.request import Request
from gateway.routing.decision import Decision, RoutingRequest
from gateway.routing.escalation import Escalation
from gateway.routing.routing_request import routing_request_for
from gateway.runs.identity import Identity, identify, mint_id, public_id
from gateway.runs.registry import Chain, RunRegistry, in_tool_loop
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.scheduling.latency_model import OutputLengths
from gateway.scheduling.request_queue import Band
from gateway.scheduling.shed_gate import FlowKey
from gateway.telemetry.trace_context import trace_of
from gateway.text.normalize import normalized
from gateway.text.prompt_encoder import Prompt, PromptEncoder, Target, check_length, total_chars

CHARACTERS_A_TOKEN = 4

Judge = Callable[[Request], dict[str, float]]


class Preparer:
    """`judge` estimates quality by tier; `escalations` are the fitted ones, by tier."""

    def __init__(
        self,
        policy: Policy,
        fleet: Fleet,
        dispatcher: Dispatcher,
        runs: RunRegistry,
        retention: RetentionPublisher,
        prompt_encoder: PromptEncoder,
        recorder: RequestRecorder,
        lengths: OutputLengths,
        judge: Judge,
        escalations: Mapping[str, Escalation] = MappingProxyType({}),
    ) -> None:
        self.escalations = escalations
        self.policy, self.fleet, self.dispatcher, self.runs = policy, fleet, dispatcher, runs
        self.retention, self.prompt_encoder, self.recorder, self.lengths, self.estimate_quality = (
            retention,
            prompt_encoder,
            recorder,
            lengths,
            judge,
        )
        self.secret = secrets.token_bytes(32)
        self._ids = RandomIds(os.urandom, time.time)
        self._answers = itertools.count()
        self.stopping = False

    async def prepare(
        self, request: Request, context: RequestContext, tenant: str, *, id_prefix: str = "chatcmpl-"
    ) -> list[ActiveRequest]:
        """Return an active request for each choice.

        Raises BadRequest, UnknownModel or Forbidden for an error of the caller; OverBudget or RateLimited; Overloaded when the
        request is shed early; NoWorker while the gateway stops.
        """
        self._check_running()
        check_asked(self.policy, asked=request.model, tenant=tenant)
        request = normalized(request, self.policy.text)
        identity = self.identity(request, context, tenant)
        run, chain = self.runs.touch(identity, tenant=tenant, now=context.at)
        if not run.turns:
            self._shed_early(request, context, tenant, identity, chain)
        pending, slo = await self.pending_request(request, context, tenant, identity, chain, attained=run.attained)
        tokens = self._reserve_tokens(pending, request, context)
        id = mint_id(self.secret, chain.name, next(self._answers), tenant=tenant, prefix=id_prefix)
        payers = Payers(tenant, context.key_id, public_id(identity.run))
        if reservations := self._reserve_budget(pending, request.num_choices, payers, context):
            self.recorder.record_reservation(id, pending.route, payers, reservations, context.wall_ns / 1e9)
        self.retention.arrived(chain, context.at)
        if identity.source in ("new", "history", "traceparent", "text"):
            self.runs.record_prompt(chain, request.messages, tenant=tenant, trace=trace_of(context.headers))
        pendings = [pending, *(_again(pending, n, self._ids.take()) for n in range(1, request.num_choices))]
        actives = [ActiveRequest(id, context, tenant, request, identity, run, chain, slo, one) for one in pendings]
        for active in actives:
            self.runs.opened(run)
            active.previous_worker = chain.warm_worker
            active.is_extra = active is not actives[0]
            active.reservation, active.reserved_tokens = reservations.pop() if reservations else None, tokens
            self.recorder.begin(active)
        return actives

    def _check_running(self) -> None:
        if self.stopping:
            raise NoWorker("this gateway is stopping: try again", retry_after_s=1.0)

    def _shed_early(self, request: Request, context: RequestContext, tenant: str, identity: Identity, chain: Chain) -> None:
        """Raise Overloaded before tokenizing when the queue is full, or the flow is being shed. Turns of a run go on.

        The route is found with about the number of tokens, so near a route's bound on prompt tokens it may be another.
        """
        is_full = self.dispatcher.queue.is_full_for(tenant)
        if not (is_full or self.dispatcher.is_shedding):
            return
        num_tokens = total_chars(request) // CHARACTERS_A_TOKEN
        try:
            route, slo = self._route(request, context, tenant, identity, prompt_tokens=num_tokens)
        except HeadwayError:  # reported after tokenizing, where the number of tokens is exact
            return
        flow = FlowKey(tenant, route.name, route.slo, request.model)
        band = _band(route.slo, self.policy.slo[route.slo], chain, request)
        refusal = self.dispatcher.queue_full() if is_full else self.dispatcher.shed_early(flow, route, slo, band)
        if refusal is not None:
            context.slo = route.slo
            raise refusal

    def _reserve_budget(
        self, pending: PendingRequest, num_choices: int, payers: Payers, context: RequestContext
    ) -> list[Reservation]:
        """Reserve from the route's budgets, for each choice. All choices together are one turn."""
        if not pending.budgets:
            return []
        views = self.fleet.views()
        wanted = [budget_need(pending.routing_request, views, turns=turns) for turns in [0] * (num_choices - 1) + [1]]
        return self.recorder.budgets.reserve(pending.budgets, payers, wanted, context.wall_ns / 1e9)

    def _reserve_tokens(self, pending: PendingRequest, request: Request, context: RequestContext) -> int:
        """Reserve tokens a minute of its key and tenant, for each choice: the prompt, and the requested or expected answer."""
        if context.rate_limit_pass is None:
            return 0
        routing_request = pending.routing_request
        output = (
            routing_request.max_output_tokens if request.max_tokens_given else math.ceil(routing_request.expected_output_tokens)
        )
        tokens = max(routing_request.prompt_tokens.values(), default=0) + output
        self.recorder.rates.reserve(context.rate_limit_pass, context.limited, [tokens] * request.num_choices, time.monotonic())
        return tokens

    def output_format(self, worker: str) -> OutputFormat:
        """Return the output format of a worker's model, by the policy or else by its chat template."""
        if worker in self.fleet.upstreams:
            return OutputFormat(calls="said")
        model = self.policy.models[self.policy.workers[worker].model]
        text = self.fleet.clients[worker].text
        output_format = text.output_format if text else OutputFormat()
        if model.tool_calls != "auto":
            output_format = output_format._replace(calls=model.tool_calls)
        return output_format if model.reasoning == "auto" else output_format._replace(thinks=model.reasoning)

    def identity(self, request: Request, context: RequestContext, tenant: str) -> Identity:
        said = identify(context.headers, request.hints, tenant=tenant)
        if said is not None:
            return said
        return self.runs.infer(
            request.messages,
            tenant=tenant,
            secret=self.secret,
            random_id=self._ids.take(),
            trace=trace_of(context.headers),
            previous=dict(request.hints).get("previous_response_id", ""),
        )

    async def pending_request(
        self,
        request: Request,
        context: RequestContext,
        tenant: str,
        identity: Identity,
        chain: Chain | None,
        *,
        attained: float,
    ) -> tuple[PendingRequest, Slo]:
        prompts = await self._prompts(request, identity.chain, tenant)
        longest = max((prompt.num_tokens for prompt in prompts.values()), default=0)
        route, slo = self._route(request, context, tenant, identity, prompt_tokens=longest)
        routing_request = self._routing_request(request, chain, route, slo, prompts, tenant)
        pending = PendingRequest(
            decision_id=f"dec-{self._ids.take()}",
            routing_request=routing_request,
            route=route.name,
            request=request,
            prompts=prompts,
            sampling=request.sampling,
            tenant=tenant,
            run=identity.run,
            chain=identity.chain,
            band=_band(route.slo, self.policy.slo[route.slo], chain, request),
            attained=attained,
            arrival=context.at,
            deadline=context.at + min(self.policy.limits.max_queue_s, slo.deadline_s or float("inf")),
            grammars=grammars_for(request, (worker for worker in prompts if worker in self.fleet.clients), self.output_format),
            slo=route.slo,
            budgets=route.budgets,
            on_overload=route.on_overload,
            admitted_run=(run := self.runs.get(identity.run)) is not None and run.turns > 0,
        )
        return pending, slo

    def _route(
        self, request: Request, context: RequestContext, tenant: str, identity: Identity, *, prompt_tokens: int
    ) -> tuple[Route, Slo]:
        route = find_route(
            self.policy,
            asked=request.model,
            tenant=tenant,
            has_tools=bool(request.tools),
            prompt_tokens=prompt_tokens,
            headers=context.headers,
            key_id=context.key_id,
            run=identity.run,
        )
        return slo_of(self.policy, route, tenant=tenant, headers=context.headers, service_tier=request.service_tier)

    async def _prompts(self, request: Request, chain: str, tenant: str) -> dict[str, Prompt]:
        """Encode the request for every healthy worker that may serve it."""
        upstreams = self._upstreams(request)
        targets = self._capable(request, instead=bool(upstreams))
        if not upstreams:
            check_length(request, targets)
        known = self.policy.tenants.get(tenant)
        shares = known is not None and known.share_prefix == "system"
        prompts = await self.prompt_encoder.build(request, targets, chain=chain, salt=tenant, shares_system=shares)
        return prompts | {one.name: one.prompt(request, chain) for one in upstreams}

    def _upstreams(self, request: Request) -> list[Upstream]:
        """Return the upstreams that support every parameter of the request."""
        asked = [one for one in self.fleet.upstreams.values() if request.model in (AUTO, one.policy.model, one.policy.tier)]
        able = [one for one in asked if one.unsupported_param(request) is None]
        if asked and not able and not self._targets(request.model):
            param = asked[0].unsupported_param(request)
            raise UnsupportedParameter(
                f"{param}: no upstream that you may be answered by can do this: leave it out", param=param
            )
        return able

    def _capable(self, request: Request, *, instead: bool) -> list[Target]:
        """Return the workers that support the request. Raises UnsupportedParameter without one and no upstream `instead`."""
        targets = self._targets(request.model)
        if request.has_grammar:
            hellos = {target.worker: self.fleet.clients[target.worker].hello for target in targets}
            param = request.calls.param if request.calls else "response_format"
            able = [t for t in targets if (hello := hellos[t.worker]) is not None and hello.grammars]
            targets = _those(targets, able, param, instead=instead)
        if request.reasoning_effort not in (None, "none"):
            able = [target for target in targets if target.text.output_format.has_effort]
            targets = _those(targets, able, request.effort_param, instead=instead)
        return targets

    async def count(self, request: Request, tenant: str) -> int:
        """Return the largest number of prompt tokens among the models that may answer. Raises BadRequest or NoWorker."""
        check_asked(self.policy, asked=request.model, tenant=tenant)
        prompts = await self._prompts(normalized(request, self.policy.text), "", tenant)
        if not prompts:
            raise NoWorker("no worker is up that could count: try again", retry_after_s=1.0)
        return max(prompt.num_tokens for prompt in prompts.values())

    def _targets(self, asked: str) -> list[Target]:
        targets = []
        for name, worker in self.policy.workers.items():
            if asked in (AUTO, worker.model, self.policy.models[worker.model].tier):
                target = target_of(self.fleet.clients[name])
                if target:
                    targets.append(target)
        return targets

    def _routing_request(
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
        # With one candidate no estimate is needed, and estimating quality is the dearest part of deciding.
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
            quality=self.estimate_quality(request) if undecided else {},
            max_output_tokens=request.sampling.max_tokens,
            expected_output_tokens=self.lengths.expect(route.name, request.sampling.max_tokens),
            locked_model=locked,
            warm_worker=chain.warm_worker if chain else None,
            expected_remaining_turns=self.runs.expected_remaining_turns(chain) if chain else 0.0,
            has_tools=bool(request.tools),
            escalations=self.escalations if undecided else {},
        )

    async def explain(self, request: Request, context: RequestContext, tenant: str) -> tuple[Request, Identity, Decision]:
        """Return the decision that the request would get now, without side effects."""
        request = normalized(request, self.policy.text)
        check_asked(self.policy, asked=request.model, tenant=tenant)
        identity = self.identity(request, context, tenant)
        run = self.runs.get(identity.run)
        chain = run.chains.get(identity.chain) if run else None
        pending, _ = await self.pending_request(request, context, tenant, identity, chain, attained=0.0)
        pending.routing_request = msgspec.structs.replace(pending.routing_request, quality=self.estimate_quality(request))
        return request, identity, self.dispatcher.decide(pending)


def _those(targets: list[Target], able: list[Target], param: str, *, instead: bool) -> list[Target]:
    if targets and not able and not instead:
        raise UnsupportedParameter(f"{param}: no model that you may be answered by can do this: leave it out", param=param)
    return able


def _again(pending: PendingRequest, number: int, id: str) -> PendingRequest:
    """Return a copy for a further choice, with a seed of its own where the request has one."""
    seed = pending.sampling.seed
    sampling = pending.sampling if seed is None else msgspec.structs.replace(pending.sampling, seed=(seed + number) % 2**63)
    return replace(pending, decision_id=f"dec-{id}", sampling=sampling)


def _band(slo_name: str, slo: Slo, chain: Chain | None, request: Request) -> Band:
    if slo.ttft_s is None:
        return Band.BATCH
    if slo_name == "interactive":
        return Band.INTERACTIVE
    continued = chain is not None and chain.turns > 0
    return Band.AGENT_TURN if continued or in_tool_loop(request.messages) else Band.NEW_RUN
