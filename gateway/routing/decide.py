"""The routing decision: the chosen worker, its predicted time and cost, and why each other candidate was rejected.

Pure. A candidate's score depends only on the request and the candidate. A further candidate that is worse never changes the
choice, and more cached tokens never make a worker less attractive. For candidate worker w:

    uncached = prompt_tokens - cached_tokens, one at least
    ttft_s   = wait_s + overhead_s + uncached * prefill_s_per_token
    finish_s = ttft_s + expected_output_tokens * tpot_s
    usd      = usd_per_s * (overhead_s + uncached * prefill_s_per_token + expected_output_tokens * decode_device_s_per_token),
               at an upstream the tokens by its prices
    switch   = min(1, expected_remaining_turns) * usd of the tokens that the warm worker v will have to prefill on return, if w
               is not v and prefill is no cheaper on w (a run that leaves a dearer worker mostly does not return):
               usd_per_s(v) * (prompt_tokens - cached_tokens(v) + expected_output_tokens) * prefill_s_per_token(v)
    risk     = mistake_cost * (1 - quality) * usd of a typical request on the best tier's cheapest worker
    score    = usd + switch + risk + miss_penalty_usd * P(missed)

A tier that the route lets escalate restarts on the best tier (worker t, its cheapest) with chance p, when the chance of a
good answer falls below a bar. The bar is the route's, else quality(t) - usd(t) / price of a mistake, else the fitted one.

    quality  = 1 - (1 - quality) * (1 - catch)        p = quality * alarm + (1 - quality) * catch
    usd      = (1 - p) * usd + p * (usd of the holdback tokens + usd(t))
    ttft_s   = ttft_s + holdback_s + p * ttft_s(t)    finish_s = (1 - p) * finish_s + p * (ttft_s + holdback_s + finish_s(t))

The lowest score at or above the quality bar wins; if none reaches it, the best quality. The bar alone does not weigh a
doubtful answer's savings: `risk` is the price that does.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.errors import ContextTooLong, NoWorker, UnknownModel
from gateway.routing.decision import (
    MAX_REJECTED,
    Decision,
    Option,
    Reason,
    Rejected,
    RejectReason,
    RoutingRequest,
    WorkerView,
)
from gateway.routing.escalation import EscalationPlan

AUTO = "auto"
SAME_COST = 1e-9
_TYPICAL_PROMPT, _TYPICAL_OUTPUT = 256, 32
"""Tokens of the request by which a mistake is priced. The price scales with the machine's speed and price."""


class _Scored(NamedTuple):
    """A scored candidate. The order is that of preference: dollars, time, quality, then the worker's name."""

    score_usd: float
    finish_s: float
    ttft_s: float
    doubt: float
    worker: str
    view: WorkerView
    usd: float
    switch_usd: float
    risk_usd: float
    miss_probability: float
    prompt_tokens: int
    cached_tokens: int
    escalation_chance: float = 0.0
    plan: EscalationPlan | None = None


class _Warm(NamedTuple):
    """The worker of the run's last turn. `missing_usd` is the price of the tokens it must prefill when the run returns,
    `token_usd` that of one token."""

    worker: str
    missing_usd: float
    token_usd: float


class FleetSummary(NamedTuple):
    """Totals of the fleet from which a shortlist was taken."""

    num_open: int
    rejected_by_reason: dict[str, int]


def decide(
    routing_request: RoutingRequest,
    fleet: Sequence[WorkerView],
    *,
    decision_id: str,
    route: str = "",
    fleet_summary: FleetSummary | None = None,
) -> Decision:
    """Return the best candidate for a request among the workers of a fleet, or of a shortlist with a `fleet_summary`.

    Raises UnknownModel if no worker serves an offered model that was requested, ContextTooLong if the prompt fits none that
    does, and NoWorker if those it fits are down or were lost.
    """
    open_: list[_Scored] = []
    closed: list[tuple[_Scored, RejectReason]] = []
    typical = _typical_usd(routing_request, fleet)
    mistake_usd = routing_request.mistake_cost * typical
    warm = _warm(routing_request, fleet)
    for view in fleet:
        scored = _score(routing_request, view, mistake_usd, warm)
        reason = _hard_filter(routing_request, view, scored.prompt_tokens, routing_request.candidates)
        if reason is None:
            open_.append(scored)
        else:
            closed.append((scored, reason))
    fallback = not open_ and _open_fallbacks(routing_request, open_, closed)
    if not open_:
        raise _no_candidate(routing_request, closed)
    num_open = fleet_summary.num_open if fleet_summary else len(open_)
    if routing_request.escalations and routing_request.asked == AUTO and routing_request.locked_model is None:
        open_ = _escalating(routing_request, open_, mistake_usd)
    contenders = _locked(routing_request, open_, closed)
    locked = contenders is not open_
    # The quality bar applies neither to a requested or locked model nor without estimates.
    judged = not locked and routing_request.asked == AUTO and bool(routing_request.quality)
    bar = routing_request.quality_bar if judged else 0.0
    chosen, reason_chosen = _choose(bar, contenders, closed)
    counted: Mapping[str, int] = fleet_summary.rejected_by_reason if fleet_summary else Counter(reason for _, reason in closed)
    return Decision(
        id=decision_id,
        reason=_reason(routing_request, "fallback" if fallback else reason_chosen, num_open=num_open, locked=locked),
        chosen=_option(chosen, routing_request),
        rejected=_best_rejected(routing_request, closed),
        rejected_by_reason=dict(counted),
        route=route,
        quality_bar=routing_request.quality_bar,
        typical_usd=typical,
        has_tools=routing_request.has_tools,
    )


def miss_probability(predicted_s: float, slo_s: float | None) -> float:
    """Return the chance that an SLO is missed: a logistic function of 4 log(predicted / SLO), one half where they are
    equal.

    A prediction of half of the SLO is a 6 % chance to miss, of twice the SLO 94 %.
    """
    if slo_s is None or predicted_s <= 0:
        return 0.0
    if slo_s <= 0:
        return 1.0
    ratio = min(slo_s / predicted_s, 1e6)
    square = ratio * ratio
    return 1.0 / (1.0 + square * square)


def _score(routing_request: RoutingRequest, view: WorkerView, mistake_usd: float, warm: _Warm | None) -> _Scored:
    prompt = routing_request.prompt_tokens.get(view.worker, 0)
    cached = min(routing_request.cached_tokens.get(view.worker, 0), max(0, prompt - 1))
    prefill_s = (prompt - cached) * view.prefill_s_per_token
    output = min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
    ttft_s = view.wait_s + view.overhead_s + prefill_s
    finish_s = ttft_s + output * view.tpot_s
    usd = view.usd(prompt - cached, cached, output)
    leaves = warm is not None and warm.worker != view.worker and view.prefill_token_usd >= warm.token_usd
    switch = warm.missing_usd if warm is not None and leaves else 0.0
    missed = _missed(routing_request, ttft_s, finish_s)
    doubt = 1.0 - routing_request.quality.get(view.tier, 0.0)
    risk = mistake_usd * doubt
    score = usd + switch + risk + routing_request.miss_penalty_usd * missed
    return _Scored(score, finish_s, ttft_s, doubt, view.worker, view, usd, switch, risk, missed, prompt, cached)


def _warm(routing_request: RoutingRequest, fleet: Sequence[WorkerView]) -> _Warm | None:
    """Return None if the run has no warm worker, or that worker is gone."""
    view = next((view for view in fleet if view.worker == routing_request.warm_worker and view.healthy), None)
    if view is None or view.worker not in routing_request.prompt_tokens:
        return None
    cached = routing_request.cached_tokens.get(view.worker, 0)
    missing = (
        routing_request.prompt_tokens[view.worker]
        - cached
        + min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
    )
    token_usd = view.prefill_token_usd
    return _Warm(view.worker, min(1.0, routing_request.expected_remaining_turns) * max(0.0, missing) * token_usd, token_usd)


def _missed(routing_request: RoutingRequest, ttft_s: float, finish_s: float) -> float:
    on_time = 1.0 - miss_probability(ttft_s, routing_request.ttft_slo_s)
    return 1.0 - on_time * (1.0 - miss_probability(finish_s, routing_request.deadline_s))


def _escalating(routing_request: RoutingRequest, open_: list[_Scored], mistake_usd: float) -> list[_Scored]:
    """Return the candidates with the expected cost and quality of escalation, for tiers that may escalate."""
    least = min(scored.doubt for scored in open_)
    restart = min((scored for scored in open_ if scored.doubt == least), key=lambda scored: (scored.usd, scored.worker))
    plans = plans_for(routing_request, best=1.0 - least, restart_usd=restart.usd, mistake_usd=mistake_usd)
    return [
        _with_escalation(routing_request, scored, plans[scored.view.tier], restart, mistake_usd)
        if scored.doubt > least and scored.view.tier in plans and scored.view.prices is None
        else scored
        for scored in open_
    ]


def plans_for(
    routing_request: RoutingRequest, *, best: float, restart_usd: float, mistake_usd: float
) -> dict[str, EscalationPlan]:
    """Return the escalation plans of this request by tier, without plans that never escalate."""
    plans = {
        tier: escalating.plan(
            routing_request.quality.get(tier, 0.0), best=best, restart_usd=restart_usd, mistake_usd=mistake_usd
        )
        for tier, escalating in routing_request.escalations.items()
    }
    return {tier: plan for tier, plan in plans.items() if plan.threshold > 0.0}


def _with_escalation(
    routing_request: RoutingRequest, scored: _Scored, plan: EscalationPlan, restart: _Scored, mistake_usd: float
) -> _Scored:
    view = scored.view
    output = min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
    holdback = min(float(plan.tokens), output)
    chance = plan.chance(1.0 - scored.doubt)
    doubt = 1.0 - plan.quality_after(1.0 - scored.doubt)
    holdback_usd = scored.usd - (output - holdback) * view.decode_token_usd
    usd = (1.0 - chance) * scored.usd + chance * (holdback_usd + restart.usd)
    holdback_s = holdback * view.tpot_s
    finish_s = (1.0 - chance) * scored.finish_s + chance * (scored.ttft_s + holdback_s + restart.finish_s)
    ttft_s = scored.ttft_s + holdback_s + chance * restart.ttft_s
    missed = _missed(routing_request, ttft_s, finish_s)
    risk = mistake_usd * doubt
    return scored._replace(
        score_usd=usd + scored.switch_usd + risk + routing_request.miss_penalty_usd * missed,
        finish_s=finish_s,
        ttft_s=ttft_s,
        doubt=doubt,
        usd=usd,
        risk_usd=risk,
        miss_probability=missed,
        escalation_chance=chance,
        plan=plan,
    )


def _typical_usd(routing_request: RoutingRequest, fleet: Sequence[WorkerView]) -> float:
    """Return the dollars of a typical request on the best tier's cheapest worker, by which a mistake is priced. 0 without
    quality estimates, or if the caller named the model."""
    known = [view for view in fleet if view.tier in routing_request.quality]
    if routing_request.asked != AUTO or not known:
        return 0.0
    best = max(routing_request.quality[view.tier] for view in known)
    return min(typical_usd(view) for view in known if routing_request.quality[view.tier] == best)


def typical_usd(view: WorkerView) -> float:
    """Return the dollars of a typical request on this worker."""
    return view.usd(_TYPICAL_PROMPT, 0, _TYPICAL_OUTPUT)


def _open_fallbacks(routing_request: RoutingRequest, open_: list[_Scored], closed: list[tuple[_Scored, RejectReason]]) -> bool:
    """Move the route's fallbacks to `open_` if a candidate is down. Return whether any candidate is open."""
    if routing_request.fallbacks and any(reason == "not_healthy" for _, reason in closed):
        for pair in [pair for pair in closed if pair[1] == "not_allowed"]:
            if _hard_filter(routing_request, pair[0].view, pair[0].prompt_tokens, routing_request.fallbacks) is None:
                closed.remove(pair)
                open_.append(pair[0])
    return bool(open_)


def _hard_filter(
    routing_request: RoutingRequest, view: WorkerView, prompt_tokens: int, candidates: tuple[str, ...]
) -> RejectReason | None:
    offered = view.model in candidates or view.tier in candidates
    if not offered or routing_request.asked not in (AUTO, view.model, view.tier):
        return "not_allowed"
    if prompt_tokens >= view.max_context:  # one output token at least must fit
        return "context_too_long"
    if not view.healthy or view.worker in routing_request.excluded_workers:
        return "not_healthy"
    if view.worker not in routing_request.prompt_tokens:  # it started after tokenization, maybe with another tokenizer
        return "not_healthy"
    return None


def _locked(routing_request: RoutingRequest, open_: list[_Scored], closed: list[tuple[_Scored, RejectReason]]) -> list[_Scored]:
    """Return the candidates of the locked model. If there is none, return `open_` itself."""
    model = routing_request.locked_model
    inside = [scored for scored in open_ if scored.view.model == model] if model is not None else []
    if not inside:
        return open_
    closed.extend((scored, "locked_elsewhere") for scored in open_ if scored.view.model != model)
    return inside


def _choose(bar: float, contenders: list[_Scored], closed: list[tuple[_Scored, RejectReason]]) -> tuple[_Scored, Reason]:
    """Return the chosen candidate and the reason. The others are appended to `closed`."""
    good = [scored for scored in contenders if 1.0 - scored.doubt >= bar]
    reason: Reason = "cheapest_good_enough" if good else "best_quality"
    least_doubt = min(scored.doubt for scored in contenders)
    pool = good or [scored for scored in contenders if scored.doubt == least_doubt]
    chosen = min(pool)
    for scored in contenders:
        if scored is chosen:
            continue
        if 1.0 - scored.doubt < bar and (good or scored.doubt > least_doubt):
            closed.append((scored, "below_quality_bar"))
        else:
            closed.append((scored, _why_not(scored, chosen)))
    return chosen, reason


def _why_not(scored: _Scored, chosen: _Scored) -> RejectReason:
    if scored.score_usd - chosen.score_usd <= SAME_COST * abs(chosen.score_usd):
        return "slower_same_cost"
    without_risk = scored.score_usd - scored.risk_usd < chosen.score_usd - chosen.risk_usd
    return "too_risky" if without_risk else "costs_more"


def _reason(routing_request: RoutingRequest, chosen: Reason, *, num_open: int, locked: bool) -> Reason:
    if routing_request.excluded_workers:
        return "failover"
    if chosen == "fallback":
        return chosen
    if routing_request.asked != AUTO:
        return "asked_by_name"
    if locked:
        return "locked_tool_loop"
    return "only_candidate" if num_open == 1 else chosen


def _option(scored: _Scored, routing_request: RoutingRequest) -> Option:
    return Option(
        worker=scored.worker,
        model=scored.view.model,
        tier=scored.view.tier,
        quality=1.0 - scored.doubt,
        escalation_chance=scored.escalation_chance,
        holdback_tokens=scored.plan.tokens if scored.plan else 0,
        escalate_below=scored.plan.threshold if scored.plan else 0.0,
        prompt_tokens=scored.prompt_tokens,
        cached_tokens=scored.cached_tokens,
        ttft_s=scored.ttft_s,
        finish_s=scored.finish_s,
        usd=scored.usd,
        switch_usd=scored.switch_usd,
        risk_usd=scored.risk_usd,
        miss_probability=scored.miss_probability,
        score_usd=scored.score_usd,
    )


def _best_rejected(routing_request: RoutingRequest, closed: list[tuple[_Scored, RejectReason]]) -> tuple[Rejected, ...]:
    # Worker names differ, so pairs sort by candidate and never by reason.
    best = sorted(closed)[:MAX_REJECTED] if len(closed) <= 2 * MAX_REJECTED else heapq.nsmallest(MAX_REJECTED, closed)
    return tuple(Rejected(option=_option(scored, routing_request), reason=reason) for scored, reason in best)


def _no_candidate(routing_request: RoutingRequest, closed: list[tuple[_Scored, RejectReason]]) -> Exception:
    reasons = {reason for _, reason in closed}
    if "not_healthy" in reasons:
        return NoWorker(f'no worker for "{routing_request.asked}" is up right now: try again', retry_after_s=1.0)
    if "context_too_long" in reasons:
        longest = max((pair[0] for pair in closed if pair[1] == "context_too_long"), key=lambda s: s.view.max_context)
        return ContextTooLong(
            f"prompt has {longest.prompt_tokens:,} tokens, {longest.view.model} takes {longest.view.max_context:,} with its"
            " answer: shorten it or route to a model with a longer context",
            param="messages",
        )
    offered = ", ".join(routing_request.candidates) or "nothing"
    return UnknownModel(f'no worker serves "{routing_request.asked}" on this route, which offers {offered}', param="model")
