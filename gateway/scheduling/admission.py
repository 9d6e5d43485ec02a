"""What becomes of a request whose promise waiting would break: another worker that is good enough takes it, or it waits, goes
to another tier, or is told so at once. Pure.

A promise is kept when waited + predicted TTFT, and the margin by which predictions are late, <= max(its TTFT, 4 * TTFT of an
idle worker), and waited + predicted finish <= its deadline, where waiting counts twice, as what comes later may go first, or
three times what it would take at the rate at which such work began lately, if that is more. What no
idle worker could keep is not broken by load, so it is never refused for its TTFT. A turn of a run that was admitted is never
refused: what was begun is worth more than what was not.
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
"""A prompt so long that even an idle worker is late has this much more than the idle worker needs."""
GOOD_ENOUGH: frozenset[RejectReason] = frozenset({"costs_more", "too_risky", "slower_same_cost", "placed_elsewhere"})
"""Rejected for something else than the quality of its answer or what was asked for."""
_GOOD_BUT_NOT_BEST: frozenset[RejectReason] = frozenset({"below_quality_bar", "costs_more", "too_risky", "slower_same_cost"})
_EACH_ITS_OWN: Mapping[str, str] = MappingProxyType({})

OVERTAKEN = 2.0
"""Times that what has only a deadline may wait for what goes before it now."""
DUE_SHARE = 0.5
"""Of the time that a promise leaves: who has waited so long goes before those who have not."""


SURE = 3.0
"""What has only a deadline is expected to wait so many times what it would at the rate at which such work began lately, which a
burst of what overtakes it may stop for half of a minute. How long its queue is changes nothing in what comes out of it."""


class QueueEstimate(NamedTuple):
    """For one worker, in seconds: what the decision counted, and what is expected until a request of this kind begins. `margin`
    is how much too short predictions are (ttft_margin.py); an `idle` worker breaks no promise. `lately_s` is until then at the
    rate at which work that is overtaken began lately (dequeue_rate.py)."""

    in_decision_s: float
    until_start_s: float
    margin: float = 0.0
    idle: bool = False
    at_recent_rate_s: float = 0.0


class AdmissionDecision(NamedTuple):
    """`late_s` is how much waiting breaks `broken` by, which is when it pays to come back; `instead` is set for degrade, and
    where a good enough option that is not the best keeps the promise."""

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
    """`waits` and `devices` are by worker."""
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
    """Seconds after its arrival until which a first token may take for the promise to hold; infinite where none is promised."""
    alone_s = option.ttft_s - estimate.in_decision_s
    ttft_s = math.inf if routing_request.ttft_slo_s is None else max(routing_request.ttft_slo_s, ISOLATED_TIMES * alone_s)
    deadline_s = (
        math.inf if routing_request.deadline_s is None else routing_request.deadline_s - (option.finish_s - option.ttft_s)
    )
    return min(ttft_s, deadline_s)


def predicted_s(option: Option, estimate: QueueEstimate) -> float:
    """From now until the first token, without any margin."""
    return option.ttft_s - estimate.in_decision_s + estimate.until_start_s


def _broken(
    routing_request: RoutingRequest, option: Option, estimates: Mapping[str, QueueEstimate], waited_s: float
) -> tuple[str, float]:
    """The promise that would be broken, with both numbers, and by how much; "" when none would."""
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
    """Of a first token that is predicted after `first_s`, and after `alone_s` on the idle worker."""
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
    """Of what takes `begun_s` once it has begun."""
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
    """The best good enough option that keeps the promise, on another device: on the same one it would take the time from the
    very worker that has none left."""
    chosen = decision.chosen.worker
    keeping = [
        one.option
        for one in decision.rejected
        if one.reason in GOOD_ENOUGH
        and devices.get(one.option.worker, one.option.worker) != devices.get(chosen, chosen)
        and not _broken(routing_request, one.option, estimates, waited_s)[0]
    ]
    return min(keeping, key=lambda option: (option.score_usd, option.worker), default=None)


def _instead(
    routing_request: RoutingRequest, decision: Decision, estimates: Mapping[str, QueueEstimate], waited_s: float
) -> Option | None:
    """The best other option that keeps the promise. What was asked for by name, or begun in a tool loop, is not changed."""
    if routing_request.asked != AUTO or routing_request.locked_model is not None:
        return None
    keeping = [
        rejected.option
        for rejected in decision.rejected
        if rejected.reason in _GOOD_BUT_NOT_BEST and not _broken(routing_request, rejected.option, estimates, waited_s)[0]
    ]
    return max(keeping, key=lambda option: (option.quality, -option.score_usd), default=None)
