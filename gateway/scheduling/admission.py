"""Admission control: a request is admitted, queued, degraded to another tier or shed by its predicted latency. Pure.

An SLO is kept when both of these hold:

    waited + predicted TTFT + margin of predictions <= max(TTFT SLO, ISOLATED_TIMES * TTFT of the idle worker)
    waited + predicted finish                       <= deadline

The finish counts queue time twice, as later requests may overtake, or three times the queue time at the recent dequeue
rate, whichever is more. An idle worker breaks no TTFT SLO: what it cannot keep is not broken by load. A turn of an admitted
run is never shed, because started work is worth more than new work.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from gateway.routing.decide import AUTO
from gateway.routing.decision import Decision, Option, RejectReason, RoutingRequest
from gateway.scheduling.ttft_margin import FLOOR_S

OnOverload = Literal["queue", "degrade", "shed"]
ISOLATED_TIMES = 4.0
"""Factor on the TTFT of an idle worker. It bounds the TTFT of a prompt too long for the SLO even on an idle worker."""
GOOD_ENOUGH: frozenset[RejectReason] = frozenset({"costs_more", "too_risky", "slower_same_cost", "placed_elsewhere"})
"""Reject reasons that concern neither the quality of the answer nor the requested model."""
_GOOD_BUT_NOT_BEST: frozenset[RejectReason] = frozenset({"below_quality_bar", "costs_more", "too_risky", "slower_same_cost"})
_EACH_ITS_OWN: Mapping[str, str] = MappingProxyType({})

OVERTAKEN = 2.0
"""Factor on the current queue time of a request with only a deadline, for later requests that overtake it."""
DUE_SHARE = 0.5
"""Share of the time that the SLO leaves, after which a waiting request precedes those that are not due. Measured in
docs/log.md (Batch work under overload)."""


SURE = 3.0
"""Factor on the queue time at the recent dequeue rate, for a request with only a deadline: a burst may stop the dequeuing
of such requests for half a minute. The estimate is independent of queue length. Measured in docs/log.md (Batch work
under overload).
"""


class QueueEstimate(NamedTuple):
    """Queue time on one worker, in seconds.

    `in_decision_s` is the part of the decision's TTFT, `until_start_s` the expected time until the request starts. `margin`
    corrects predictions (ttft_margin.py). An `idle` worker breaks no TTFT SLO. `at_recent_rate_s` is the time until the
    start at the recent rate of overtaken requests (request_queue.py).
    """

    in_decision_s: float
    until_start_s: float
    margin: float = 0.0
    idle: bool = False
    at_recent_rate_s: float = 0.0


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


def slo_bound_s(routing_request: RoutingRequest, option: Option, estimate: QueueEstimate) -> float:
    """Return the largest TTFT in seconds, from arrival, that keeps the SLO. Infinite without an SLO."""
    alone_s = option.ttft_s - estimate.in_decision_s
    ttft_s = math.inf if routing_request.ttft_slo_s is None else max(routing_request.ttft_slo_s, ISOLATED_TIMES * alone_s)
    deadline_s = (
        math.inf if routing_request.deadline_s is None else routing_request.deadline_s - (option.finish_s - option.ttft_s)
    )
    return min(ttft_s, deadline_s)


def predicted_s(option: Option, estimate: QueueEstimate) -> float:
    """Return the seconds from now until the first token, without a margin."""
    return option.ttft_s - estimate.in_decision_s + estimate.until_start_s


def _broken(
    routing_request: RoutingRequest, option: Option, estimates: Mapping[str, QueueEstimate], waited_s: float
) -> tuple[str, float]:
    """Return the SLO that would be broken, with both numbers, and the seconds late. ("", 0.0) if none."""
    estimate = estimates.get(option.worker, _NO_WAIT)
    alone_s = option.ttft_s - estimate.in_decision_s
    broken, late_s = _late_first(routing_request.ttft_slo_s, estimate, waited_s, predicted_s(option, estimate), alone_s)
    return (
        (broken, late_s)
        if broken
        else _late_end(routing_request.deadline_s, estimate, waited_s, option.finish_s - estimate.in_decision_s)
    )


def _late_first(
    slo_s: float | None, estimate: QueueEstimate, waited_s: float, first_s: float, alone_s: float
) -> tuple[str, float]:
    """Return the broken TTFT SLO and the seconds late. `first_s` is the predicted TTFT, `alone_s` that of the idle worker."""
    if slo_s is None or estimate.idle:
        return "", 0.0
    allowed_s = max(slo_s, ISOLATED_TIMES * alone_s)
    expected_s, bound_s = waited_s + first_s, waited_s + first_s + estimate.margin * (first_s + FLOOR_S)
    if expected_s > allowed_s:
        return f"a first token within {allowed_s:.3g} s would take {expected_s:.3g} s", expected_s - allowed_s
    if bound_s > allowed_s:
        return f"a first token within {allowed_s:.3g} s may take {bound_s:.3g} s", bound_s - allowed_s
    return "", 0.0


def _late_end(deadline_s: float | None, estimate: QueueEstimate, waited_s: float, begun_s: float) -> tuple[str, float]:
    """Return the broken deadline and the seconds late. `begun_s` is the time from start to finish."""
    if deadline_s is None:
        return "", 0.0
    finish_s = waited_s + begun_s + max(OVERTAKEN * estimate.until_start_s, SURE * estimate.at_recent_rate_s)
    if finish_s > deadline_s:
        return f"an end within {deadline_s:.3g} s would take {finish_s:.3g} s", finish_s - deadline_s
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
