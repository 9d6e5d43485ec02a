"""Builds the input of `decide` from a request, its route and its run."""

from collections.abc import Mapping
from types import MappingProxyType

from gateway.policy.routes import candidates_for, fallbacks_for
from gateway.policy.schema import Policy, Route, Slo
from gateway.routing.decision import RoutingRequest
from gateway.routing.escalation import Escalating, Escalation

_NONE: Mapping[str, Escalation] = MappingProxyType({})


def routing_request_for(
    policy: Policy,
    route: Route,
    slo: Slo,
    *,
    asked: str,
    tenant: str,
    prompt_tokens: Mapping[str, int],
    cached_tokens: Mapping[str, int],
    quality: Mapping[str, float],
    max_output_tokens: int,
    expected_output_tokens: float,
    locked_model: str | None = None,
    warm_worker: str | None = None,
    expected_remaining_turns: float = 0.0,
    excluded_workers: tuple[str, ...] = (),
    has_tools: bool = False,
    escalations: Mapping[str, Escalation] = _NONE,
) -> RoutingRequest:
    """Return the input of `decide`. Token counts are by worker, quality by tier. `locked_model` is the model of the chain's
    tool loop, unless the route disables the lock. `slo` is the caller's SLO."""
    return RoutingRequest(
        asked=asked,
        candidates=candidates_for(policy, route, tenant=tenant),
        prompt_tokens=dict(prompt_tokens),
        cached_tokens=dict(cached_tokens),
        max_output_tokens=max_output_tokens,
        expected_output_tokens=expected_output_tokens,
        quality=dict(quality),
        quality_bar=route.quality_bar,
        mistake_cost=route.mistake_cost,
        ttft_slo_s=slo.ttft_s,
        ttft_idle_factor=slo.ttft_idle_factor,
        deadline_s=slo.deadline_s,
        miss_penalty_usd=slo.miss_penalty_usd,
        locked_model=locked_model if route.lock_tool_loop else None,
        warm_worker=warm_worker,
        expected_remaining_turns=expected_remaining_turns,
        excluded_workers=excluded_workers,
        fallbacks=fallbacks_for(policy, route, tenant=tenant),
        has_tools=has_tools,
        escalations=_escalations(route, escalations, quality),
    )


def _escalations(route: Route, fitted: Mapping[str, Escalation], quality: Mapping[str, float]) -> dict[str, Escalating]:
    """Return the fitted rules that the route uses. Settings of the route override fitted ones."""
    wanted = route.escalate
    if wanted is None:
        return {}
    return {
        tier: Escalating(fitted=rule, tokens=wanted.tokens, bar=wanted.bar) for tier, rule in fitted.items() if tier in quality
    }
