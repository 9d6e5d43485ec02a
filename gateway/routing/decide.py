"""The one decision: which worker answers, what that is expected to take and cost, and why not the others.

Pure. Each candidate's score depends on nothing but the question and itself, so a further candidate that is worse never
changes the choice, and more cached tokens never make a worker less attractive. For candidate worker w:

    uncached = prompt_tokens - cached_tokens, one at least
    ttft_s   = wait_s + overhead_s + uncached * prefill_s_per_token
    finish_s = ttft_s + expected_output_tokens * tpot_s
    usd      = usd_per_s * (overhead_s + uncached * prefill_s_per_token + expected_output_tokens * decode_device_s_per_token),
               at an upstream the tokens by its prices
    switch   = min(1, expected_remaining_turns) * what the warm worker v will have to catch up with, when w is not v,
               and reading is no cheaper on w (from a dearer worker a run mostly leaves for good):
               usd_per_s(v) * (prompt_tokens - cached_tokens(v) + expected_output_tokens) * prefill_s_per_token(v)
    risk     = mistake_cost * (1 - quality) * usd of a typical request on the best tier's cheapest worker
    score    = usd + switch + risk + miss_penalty_usd * P(missed)

A tier that the route lets escalate begins anew on the best tier (worker t, its cheapest) with chance p, when its chance of a
good answer is seen to fall below a bar: the route's, else quality(t) - usd(t) / price of a mistake, else the fitted one.

    quality  = 1 - (1 - quality) * (1 - catch)        p = quality * alarm + (1 - quality) * catch
    usd      = (1 - p) * usd + p * (usd of the tokens held back + usd(t))
    ttft_s   = ttft_s + held_s + p * ttft_s(t)        finish_s = (1 - p) * finish_s + p * (ttft_s + held_s + finish_s(t))

The least score over the quality bar wins; when nothing is over it, the best quality. The bar alone treats a doubtful answer
that saves much like one that saves little; `risk` is the price that tells them apart.
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
"""Tokens of the request that a mistake is priced in: a scale that goes with the machine's speed and price."""


class _Scored(NamedTuple):
    """Sorts as candidates are preferred: dollars first, then time, then quality; the name settles what is left."""

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
    """Where the run was last; dollars of what it would have to read when the run comes back, and of one token."""

    worker: str
    missing_usd: float
    token_usd: float


class FleetSummary(NamedTuple):
    """What a short list does not show of the fleet that it was taken from."""

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
    """The best candidate for a question among the workers of the fleet, or of a short list of a `whole` fleet.

    Raises UnknownModel when no worker is of what was asked and offered, ContextTooLong when the prompt fits none that is,
    and NoWorker when those it fits are down or were lost.
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
    # What was asked for or begun needs no quality, and without estimates there is nothing to hold against the bar.
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
    """The chance that a promise is broken: a logistic on 4 log(predicted / SLO), one half where they are equal.

    Predicted at half of what was promised is a 6 % chance to miss, at twice 94 %.
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
    leaves = warm is not None and warm.worker != view.worker and view.read_usd >= warm.token_usd
    switch = warm.missing_usd if warm is not None and leaves else 0.0
    missed = _missed(routing_request, ttft_s, finish_s)
    doubt = 1.0 - routing_request.quality.get(view.tier, 0.0)
    risk = mistake_usd * doubt
    score = usd + switch + risk + routing_request.miss_penalty_usd * missed
    return _Scored(score, finish_s, ttft_s, doubt, view.worker, view, usd, switch, risk, missed, prompt, cached)


def _warm(routing_request: RoutingRequest, fleet: Sequence[WorkerView]) -> _Warm | None:
    """None when the run is warm nowhere, or that worker is gone."""
    view = next((view for view in fleet if view.worker == routing_request.warm_worker and view.healthy), None)
    if view is None or view.worker not in routing_request.prompt_tokens:
        return None
    cached = routing_request.cached_tokens.get(view.worker, 0)
    missing = (
        routing_request.prompt_tokens[view.worker]
        - cached
        + min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
    )
    token_usd = view.read_usd
    return _Warm(view.worker, min(1.0, routing_request.expected_remaining_turns) * max(0.0, missing) * token_usd, token_usd)


def _missed(routing_request: RoutingRequest, ttft_s: float, finish_s: float) -> float:
    on_time = 1.0 - miss_probability(ttft_s, routing_request.ttft_slo_s)
    return 1.0 - on_time * (1.0 - miss_probability(finish_s, routing_request.deadline_s))


def _escalating(routing_request: RoutingRequest, open_: list[_Scored], mistake_usd: float) -> list[_Scored]:
    """With what beginning anew adds to those that may, and what it takes from their doubt."""
    least = min(scored.doubt for scored in open_)
    anew = min((scored for scored in open_ if scored.doubt == least), key=lambda scored: (scored.usd, scored.worker))
    plans = plans_for(routing_request, best=1.0 - least, anew_usd=anew.usd, mistake_usd=mistake_usd)
    return [
        _with_escalation(routing_request, scored, plans[scored.view.tier], anew, mistake_usd)
        if scored.doubt > least and scored.view.tier in plans and scored.view.prices is None
        else scored
        for scored in open_
    ]


def plans_for(
    routing_request: RoutingRequest, *, best: float, anew_usd: float, mistake_usd: float
) -> dict[str, EscalationPlan]:
    """By tier, for this question; without those whose answers would stand however unsure they are."""
    plans = {
        tier: one.hold(routing_request.quality.get(tier, 0.0), best=best, anew_usd=anew_usd, mistake_usd=mistake_usd)
        for tier, one in routing_request.escalations.items()
    }
    return {tier: plan for tier, plan in plans.items() if plan.threshold > 0.0}


def _with_escalation(
    routing_request: RoutingRequest, scored: _Scored, plan: EscalationPlan, anew: _Scored, mistake_usd: float
) -> _Scored:
    view = scored.view
    output = min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
    held = min(float(plan.tokens), output)
    chance = plan.chance(1.0 - scored.doubt)
    doubt = 1.0 - plan.quality_after(1.0 - scored.doubt)
    held_usd = scored.usd - (output - held) * view.write_usd
    usd = (1.0 - chance) * scored.usd + chance * (held_usd + anew.usd)
    held_s = held * view.tpot_s
    finish_s = (1.0 - chance) * scored.finish_s + chance * (scored.ttft_s + held_s + anew.finish_s)
    ttft_s = scored.ttft_s + held_s + chance * anew.ttft_s
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
    """Dollars of a typical request on the best tier's cheapest worker, in which a worse answer is priced; zero when the
    caller or the loop has chosen the model, or when nothing is estimated."""
    known = [view for view in fleet if view.tier in routing_request.quality]
    if routing_request.asked != AUTO or not known:
        return 0.0
    best = max(routing_request.quality[view.tier] for view in known)
    return min(typical_usd(view) for view in known if routing_request.quality[view.tier] == best)


def typical_usd(view: WorkerView) -> float:
    """Dollars of a typical request on this worker."""
    return view.usd(_TYPICAL_PROMPT, 0, _TYPICAL_OUTPUT)


def _open_fallbacks(routing_request: RoutingRequest, open_: list[_Scored], closed: list[tuple[_Scored, RejectReason]]) -> bool:
    """Moves to `open_` what the route falls back on, when its candidates are all down; whether there was any."""
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
    if prompt_tokens >= view.max_context:  # at least one token must fit behind the prompt
        return "context_too_long"
    if not view.healthy or view.worker in routing_request.excluded_workers:
        return "not_healthy"
    if view.worker not in routing_request.prompt_tokens:  # it came up after the prompt was made, maybe with another tokenizer
        return "not_healthy"
    return None


def _locked(routing_request: RoutingRequest, open_: list[_Scored], closed: list[tuple[_Scored, RejectReason]]) -> list[_Scored]:
    """Those that serve the locked model, if any does; else the very list that came in."""
    model = routing_request.locked_model
    inside = [scored for scored in open_ if scored.view.model == model] if model is not None else []
    if not inside:
        return open_
    closed.extend((scored, "locked_elsewhere") for scored in open_ if scored.view.model != model)
    return inside


def _choose(bar: float, contenders: list[_Scored], closed: list[tuple[_Scored, RejectReason]]) -> tuple[_Scored, Reason]:
    """The chosen one; the others join `closed`."""
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
    # Candidates differ in their names at the latest, so pairs compare as candidates are preferred.
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
