"""From a parsed request to an active one: identity, early shedding, prompts, route, routing request, reservations."""

import itertools
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec

from gateway.errors import HeadwayError, NoWorker
from gateway.fleet.fleet import Fleet
from gateway.parsers.grammar import grammars_for
from gateway.parsers.output_format import OutputFormat
from gateway.pipeline.active_request import ActiveRequest, RequestContext
from gateway.pipeline.dispatcher import Dispatcher
from gateway.pipeline.encode import RequestEncoder, longest
from gateway.pipeline.ids import RandomIds
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.recorder import RequestRecorder
from gateway.pipeline.reserve import reserve
from gateway.pipeline.stages import Identified, Reserved, Routed
from gateway.policy.routes import candidates_for, check_asked, find_route
from gateway.policy.schema import Policy
from gateway.policy.slo import slo_of
from gateway.policy.validate import AUTO
from gateway.request import Request
from gateway.routing.decision import Decision, RoutingRequest
from gateway.routing.escalation import Escalation
from gateway.routing.routing_request import routing_request_for
from gateway.runs.identity import Identity, identify, mint_id
from gateway.runs.registry import RunRegistry, in_tool_loop
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.scheduling.latency_model import OutputLengths
from gateway.scheduling.request_queue import Band
from gateway.scheduling.shed_gate import FlowKey
from gateway.telemetry.trace_context import trace_of
from gateway.text.normalize import normalized
from gateway.text.prompt_encoder import Prompt, PromptEncoder, total_chars
from gateway.training.asked_digest import digest_of

CHARACTERS_A_TOKEN = 4
"""Rough length of a prompt that is not tokenized. Only the route of a request that is shed early depends on it."""

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
        self.policy, self.estimate_quality, self.escalations = policy, judge, escalations
        self.encoder = RequestEncoder(fleet, prompt_encoder)
        self._fleet, self._dispatcher, self._runs = fleet, dispatcher, runs
        self._retention, self._recorder, self._lengths = retention, recorder, lengths
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
        if self.stopping:
            raise NoWorker("this gateway is stopping: try again", retry_after_s=1.0)
        identified = self._identify(request, context, tenant, touch=True)
        self._shed_early(identified)
        prompts = await self._encode(identified)
        routed = _route(identified, prompt_tokens=longest(prompts))
        routing_request = self._routing_request(identified, routed, prompts)
        pending = self._pending(identified, routed, routing_request, prompts)
        assert identified.chain
        id = mint_id(self.secret, identified.chain.name, next(self._answers), tenant=tenant, prefix=id_prefix)
        reserved = reserve(pending, identified, self._fleet, self._recorder, id)
        self._record_arrival(identified)
        actives = self._activate(id, identified, routed, pending, reserved)
        digest = digest_of(request, id)
        for active in actives:
            active.asked_digest = digest
        return actives

    async def explain(self, request: Request, context: RequestContext, tenant: str) -> tuple[Request, Identity, Decision]:
        """Return the decision that the request would get now, without side effects."""
        identified = self._identify(request, context, tenant, touch=False)
        prompts = await self._encode(identified)
        routed = _route(identified, prompt_tokens=longest(prompts))
        routing_request = self._routing_request(identified, routed, prompts)
        routing_request = msgspec.structs.replace(routing_request, quality=self.estimate_quality(identified.request))
        pending = self._pending(identified, routed, routing_request, prompts)
        return identified.request, identified.identity, self._dispatcher.decide(pending)

    async def count(self, request: Request, tenant: str) -> int:
        """Return the largest number of prompt tokens among the models that may answer. Raises BadRequest or NoWorker."""
        check_asked(self.policy, asked=request.model, tenant=tenant)
        return await self.encoder.count(self.policy, normalized(request, self.policy.text), tenant)

    def output_format(self, worker: str) -> OutputFormat:
        """Return the output format of a worker's model, by the policy or else by its chat template."""
        return self.encoder.output_format(self.policy, worker)

    def _identify(self, request: Request, context: RequestContext, tenant: str, *, touch: bool) -> Identified:
        """Normalize the request and find its run. `touch` registers a run that is new."""
        policy = self.policy
        check_asked(policy, asked=request.model, tenant=tenant)
        request = normalized(request, policy.text)
        identity = identify(context.headers, request.hints, tenant=tenant) or self._runs.infer(
            request.messages,
            tenant=tenant,
            secret=self.secret,
            random_id=self._ids.take(),
            trace=trace_of(context.headers),
            previous=dict(request.hints).get("previous_response_id", ""),
        )
        if touch:
            run, chain = self._runs.touch(identity, tenant=tenant, now=context.at)
            return Identified(policy, request, context, tenant, identity, run, chain)
        known = self._runs.get(identity.run)
        return Identified(
            policy, request, context, tenant, identity, known, known.chains.get(identity.chain) if known else None
        )

    def _shed_early(self, identified: Identified) -> None:
        """Raise Overloaded before tokenizing when the queue is full, or the flow is being shed. Turns of a run go on.

        The route is found with about the number of tokens, so near a route's bound on prompt tokens it may be another.
        """
        tenant, request = identified.tenant, identified.request
        is_full = self._dispatcher.queue.is_full_for(tenant)
        if identified.continues_run or not (is_full or self._dispatcher.is_shedding):
            return
        try:
            routed = _route(identified, prompt_tokens=total_chars(request) // CHARACTERS_A_TOKEN)
        except HeadwayError:  # reported after tokenizing, where the number of tokens is exact
            return
        route = routed.route
        if is_full:
            refusal: HeadwayError | None = self._dispatcher.queue_full()
        else:
            flow = FlowKey(tenant, route.name, route.slo, request.model)
            refusal = self._dispatcher.shed_early(flow, route, routed.slo, routed.band)
        if refusal is not None:
            identified.context.slo = route.slo
            raise refusal

    async def _encode(self, identified: Identified) -> dict[str, Prompt]:
        return await self.encoder.encode(
            identified.policy, identified.request, chain=identified.identity.chain, tenant=identified.tenant
        )

    def _routing_request(self, identified: Identified, routed: Routed, prompts: dict[str, Prompt]) -> RoutingRequest:
        policy, request, chain, route = identified.policy, identified.request, identified.chain, routed.route
        locked = chain.locked_model if chain and route.lock_tool_loop and in_tool_loop(request.messages) else None
        tiers = policy.tier_by_model()
        candidates = candidates_for(policy, route, tenant=identified.tenant)
        # With one candidate no estimate is needed, and estimating quality is the dearest part of deciding.
        undecided = request.model == AUTO and locked is None and len({tiers[model] for model in candidates}) > 1
        return routing_request_for(
            policy,
            route,
            routed.slo,
            asked=request.model,
            tenant=identified.tenant,
            prompt_tokens={worker: prompt.num_tokens for worker, prompt in prompts.items()},
            cached_tokens={},
            quality=self.estimate_quality(request) if undecided else {},
            max_output_tokens=request.sampling.max_tokens,
            expected_output_tokens=self._lengths.expect(route.name, request.sampling.max_tokens),
            locked_model=locked,
            warm_worker=chain.warm_worker if chain else None,
            expected_remaining_turns=self._runs.expected_remaining_turns(chain) if chain else 0.0,
            has_tools=bool(request.tools),
            escalations=self.escalations if undecided else {},
        )

    def _pending(
        self, identified: Identified, routed: Routed, routing_request: RoutingRequest, prompts: dict[str, Prompt]
    ) -> PendingRequest:
        request, arrival, route = identified.request, identified.context.at, routed.route
        hosted = [worker for worker in prompts if worker in self._fleet.clients]
        longest_s = min(identified.policy.limits.max_queue_s, routed.slo.deadline_s or float("inf"))
        return PendingRequest(
            decision_id=f"dec-{self._ids.take()}",
            routing_request=routing_request,
            route=route.name,
            request=request,
            prompts=prompts,
            sampling=request.sampling,
            tenant=identified.tenant,
            run=identified.identity.run,
            chain=identified.identity.chain,
            band=routed.band,
            attained=identified.run.attained if identified.run else 0.0,
            arrival=arrival,
            deadline=arrival + longest_s,
            grammars=grammars_for(request, hosted, lambda worker: self.encoder.output_format(identified.policy, worker)),
            slo=route.slo,
            budgets=route.budgets,
            on_overload=route.on_overload,
            admitted_run=identified.continues_run,
        )

    def _record_arrival(self, identified: Identified) -> None:
        """Record the turn for the chain's retention and, where the caller names no run, its text for later turns."""
        chain, context = identified.chain, identified.context
        assert chain
        self._retention.arrived(chain, context.at)
        if identified.identity.source in ("new", "history", "traceparent", "text"):
            messages, trace = identified.request.messages, trace_of(context.headers)
            self._runs.record_prompt(chain, messages, tenant=identified.tenant, trace=trace)

    def _activate(
        self, id: str, identified: Identified, routed: Routed, pending: PendingRequest, reserved: Reserved
    ) -> list[ActiveRequest]:
        request, run, chain = identified.request, identified.run, identified.chain
        assert run and chain
        reservations = list(reserved.reservations)
        actives = []
        for number in range(request.num_choices):
            choice = _choice(pending, number, self._ids.take()) if number else pending
            active = ActiveRequest(
                id, identified.context, identified.tenant, request, identified.identity, run, chain, routed.slo, choice
            )
            self._runs.opened(run)
            active.previous_worker = chain.warm_worker
            active.is_extra = number > 0
            active.reservation, active.reserved_tokens = reservations.pop() if reservations else None, reserved.tokens
            self._recorder.begin(active)
            actives.append(active)
        return actives


def _route(identified: Identified, *, prompt_tokens: int) -> Routed:
    """Return the first route that matches, with the SLO that the caller gets there. Raises BadRequest or Forbidden."""
    policy, request, context, tenant = identified.policy, identified.request, identified.context, identified.tenant
    route = find_route(
        policy,
        asked=request.model,
        tenant=tenant,
        has_tools=bool(request.tools),
        prompt_tokens=prompt_tokens,
        headers=context.headers,
        key_id=context.key_id,
        run=identified.identity.run,
    )
    route, slo = slo_of(policy, route, tenant=tenant, headers=context.headers, service_tier=request.service_tier)
    return Routed(route, slo, _band(identified, route.slo))


def _band(identified: Identified, slo_name: str) -> Band:
    if identified.policy.slo[slo_name].ttft_s is None:
        return Band.BATCH
    if slo_name == "interactive":
        return Band.INTERACTIVE
    continued = identified.chain is not None and identified.chain.turns > 0
    return Band.AGENT_TURN if continued or in_tool_loop(identified.request.messages) else Band.NEW_RUN


def _choice(pending: PendingRequest, number: int, id: str) -> PendingRequest:
    """Return a copy for a further choice, with a seed of its own where the request has one."""
    seed = pending.sampling.seed
    sampling = pending.sampling if seed is None else msgspec.structs.replace(pending.sampling, seed=(seed + number) % 2**63)
    return replace(pending, decision_id=f"dec-{id}", sampling=sampling)
