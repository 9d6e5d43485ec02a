"""Admission control: a request is admitted, queued, degraded to another tier or shed by its predicted latency. Pure.

An SLO is kept when both of these hold:

    waited + predicted TTFT + margin of predictions <= max(TTFT SLO, ttft_idle_factor * TTFT of the idle worker)
    waited + predicted finish                       <= deadline

An idle worker breaks no TTFT SLO: what it cannot keep is not broken by load. A turn of an admitted run is never shed, because
started work is worth more than new work.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from gateway.routing.decide import AUTO
from gateway.routing.decision import Decision, Option, RejectReason, RoutingRequest
from gateway.scheduling.ttft_margin import FLOOR_S

OnOverload = Literal["queue", "degrade", "shed"]
GOOD_ENOUGH: frozenset[RejectReason] = frozenset({"costs_more", "too_risky", "slower_same_cost", "placed_elsewhere"})
"""Reject reasons that concern neither the quality of the answer nor the requested model."""
_GOOD_BUT_NOT_BEST: frozenset[RejectReason] = frozenset({"below_quality_bar", "costs_more", "too_risky", "slower_same_cost"})
_EACH_ITS_OWN: Mapping[str, str] = MappingProxyType({})


class QueueEstimate(NamedTuple):
    """Queue time on one worker, in seconds.

    `in_decision_s` is the part of the decision's TTFT, `until_start_s` the expected time until the request starts. `margin`
    corrects predictions (ttft_margin.py). An `idle` worker breaks no TTFT SLO.
    """

    in_decision_s: float
    until_start_s: float
    margin: float = 0.0
    idle: bool = False


class AdmissionDecision(NamedTuple):
    """Action for one request. `missed_slo` describes the broken SLO, `late_s` is by how many seconds, and gives the retry
    time. `alternative` is set for `degrade`, and for `admit` when another good enough option keeps the SLO."""

    action: Literal["admit", "queue", "degrade", "shed"]
    missed_slo: str = ""
    late_s: float = 0.0
    alternative: Option | None = None


ADMIT = AdmissionDecision("admit")
_NO_WAIT = QueueEstimate(0.0, 0.0, idle=True)


def admit(
    routing_request: RoutingRequest,
    decision: Decision,
    estimates: Mapping[str, QueueEstimate],
    *,
    on_overload: OnOverload,
    admitted_run: bool = False,
    waited_s: float = 0.0,
    devices: Mapping[str, str] = _EACH_ITS_OWN,
) -> AdmissionDecision:
    """Return the action for a request. `estimates` and `devices` are by worker; `waited_s` is the time since arrival."""
    broken, late_s = _broken(routing_request, decision.chosen, estimates, waited_s)
    if not broken:
        return ADMIT
    if on_overload != "queue" and (elsewhere := _elsewhere(routing_request, decision, estimates, waited_s, devices)):
        return AdmissionDecision("admit", alternative=elsewhere)
    if on_overload == "degrade":
        instead = _instead(routing_request, decision, estimates, waited_s)
        return AdmissionDecision("degrade", broken, late_s, instead) if instead else AdmissionDecision("queue", broken, late_s)
    if on_overload == "shed" and not admitted_run:
        return AdmissionDecision("shed", broken, late_s)
    return AdmissionDecision("queue", broken, late_s)


def predicted_s(option: Option, estimate: QueueEstimate) -> float:
    """Return the seconds from now until the first token, without a margin."""
    return option.ttft_s - estimate.in_decision_s + estimate.until_start_s


def _broken(
    routing_request: RoutingRequest, option: Option, estimates: Mapping[str, QueueEstimate], waited_s: float
) -> tuple[str, float]:
    """Return the SLO that would be broken, with both numbers, and the seconds late. ("", 0.0) if none."""
    estimate = estimates.get(option.worker, _NO_WAIT)
    if routing_request.ttft_slo_s is not None and not estimate.idle:
        alone_s = option.ttft_s - estimate.in_decision_s
        allowed_s = max(routing_request.ttft_slo_s, routing_request.ttft_idle_factor * alone_s)
        broken, late_s = _late_first(allowed_s, waited_s + predicted_s(option, estimate), estimate.margin)
        if broken:
            return broken, late_s
    finish_s = waited_s + option.finish_s - estimate.in_decision_s + estimate.until_start_s
    if routing_request.deadline_s is not None and finish_s > routing_request.deadline_s:
        deadline_s = routing_request.deadline_s
        return f"an end within {deadline_s:.3g} s would take {finish_s:.3g} s", finish_s - deadline_s
    return "", 0.0


def _late_first(allowed_s: float, expected_s: float, margin: float) -> tuple[str, float]:
    """Return the broken TTFT SLO and the seconds late. `expected_s` is the predicted TTFT from arrival."""
    bound_s = expected_s + margin * (expected_s + FLOOR_S)
    if expected_s > allowed_s:
        return f"a first token within {allowed_s:.3g} s would take {expected_s:.3g} s", expected_s - allowed_s
    if bound_s > allowed_s:
        return f"a first token within {allowed_s:.3g} s may take {bound_s:.3g} s", bound_s - allowed_s
    return "", 0.0


def _elsewhere(
    routing_request: RoutingRequest,
    decision: Decision,
    estimates: Mapping[str, QueueEstimate],
    waited_s: float,
    devices: Mapping[str, str],
) -> Option | None:
    """Return the cheapest good enough option that keeps the SLO on another device. A worker on the same device would take
    its time from the chosen worker, which has none left."""
    chosen = decision.chosen.worker
    keeping = [
        rejected.option
        for rejected in decision.rejected
        if rejected.reason in GOOD_ENOUGH
        and devices.get(rejected.option.worker, rejected.option.worker) != devices.get(chosen, chosen)
        and not _broken(routing_request, rejected.option, estimates, waited_s)[0]
    ]
    return min(keeping, key=lambda option: (option.score_usd, option.worker), default=None)


def _instead(
    routing_request: RoutingRequest, decision: Decision, estimates: Mapping[str, QueueEstimate], waited_s: float
) -> Option | None:
    """Return the best other option that keeps the SLO. None if the model was requested by name or locked by a tool loop."""
    if routing_request.asked != AUTO or routing_request.locked_model is not None:
        return None
    keeping = [
        rejected.option
        for rejected in decision.rejected
        if rejected.reason in _GOOD_BUT_NOT_BEST and not _broken(routing_request, rejected.option, estimates, waited_s)[0]
    ]
    return max(keeping, key=lambda option: (option.quality, -option.score_usd), default=None)
