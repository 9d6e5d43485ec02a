"""A request, its route and its run, put as the question that `decide` answers."""

from collections.abc import Mapping

from gateway.policy.routes import candidates_for
from gateway.policy.schema import Policy, Route
from gateway.routing.decision import Question


def question_for(
    policy: Policy,
    route: Route,
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
) -> Question:
    """Token counts are by worker, quality by tier. `locked_model` is the model of the tool loop that the chain is in;
    the route may say that it does not bind."""
    slo = policy.slo[route.slo]
    return Question(
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
        deadline_s=slo.deadline_s,
        miss_penalty_usd=slo.miss_penalty_usd,
        locked_model=locked_model if route.lock_tool_loop else None,
        warm_worker=warm_worker,
        expected_remaining_turns=expected_remaining_turns,
        excluded_workers=excluded_workers,
    )
