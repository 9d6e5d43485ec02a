"""What becomes of a request whose promise waiting would break: it waits, goes to another tier, or is told so at once. Pure.

A promise is kept when waited + predicted TTFT + doubt <= max(its TTFT, 4 * TTFT of an idle worker), and waited + predicted
finish + doubt <= its deadline. Doubt is what the worker's predictions were wrong by, at most the predicted wait: an idle worker
always gets the next request, so that there is always something to learn from. What no idle worker could keep is not broken by
load, so it is never refused for its TTFT. A turn of a run that was admitted is never refused: what was begun is worth more than
what was not.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from gateway.routing.decide import AUTO
from gateway.routing.decision import Decision, Option, Question, RejectReason

OnOverload = Literal["queue", "degrade", "shed"]
ISOLATED_TIMES = 4.0
"""A prompt so long that even an idle worker is late has this much more than the idle worker needs."""
_GOOD_BUT_NOT_BEST: frozenset[RejectReason] = frozenset({"below_quality_bar", "costs_more", "too_risky", "slower_same_cost"})


class Wait(NamedTuple):
    """For one worker: what the decision knew of it, and of those in the gateway that go before, and how far predictions were
    off. Seconds."""

    in_decision_s: float
    for_seats_s: float
    uncertain_s: float = 0.0

    @property
    def doubt_s(self) -> float:
        return min(self.uncertain_s, self.in_decision_s + self.for_seats_s)


class Verdict(NamedTuple):
    """`late_s` is how much waiting breaks `broken` by, which is when it pays to come back; `instead` is set for degrade."""

    action: Literal["admit", "queue", "degrade", "shed"]
    broken: str = ""
    late_s: float = 0.0
    instead: Option | None = None


ADMIT = Verdict("admit")
_NO_WAIT = Wait(0.0, 0.0)


def judge(
    question: Question,
    decision: Decision,
    waits: Mapping[str, Wait],
    *,
    on_overload: OnOverload,
    admitted_run: bool = False,
    waited_s: float = 0.0,
) -> Verdict:
    """`waits` is by worker."""
    broken, late_s = _broken(question, decision.chosen, waits, waited_s)
    if not broken:
        return ADMIT
    if on_overload == "degrade":
        instead = _instead(question, decision, waits, waited_s)
        return Verdict("degrade", broken, late_s, instead) if instead else Verdict("queue", broken, late_s)
    if on_overload == "shed" and not admitted_run:
        return Verdict("shed", broken, late_s)
    return Verdict("queue", broken, late_s)


def _broken(question: Question, option: Option, waits: Mapping[str, Wait], waited_s: float) -> tuple[str, float]:
    """The promise that would be broken, with both numbers; "" when none would."""
    wait = waits.get(option.worker, _NO_WAIT)
    before_s = waited_s + wait.for_seats_s + wait.doubt_s
    ttft_s, finish_s = before_s + option.ttft_s, before_s + option.finish_s
    if question.ttft_slo_s is not None:
        promised_s = max(question.ttft_slo_s, ISOLATED_TIMES * (option.ttft_s - wait.in_decision_s))
        if ttft_s > promised_s:
            return f"a first token within {promised_s:.3g} s would take {ttft_s:.3g} s", ttft_s - promised_s
    if question.deadline_s is not None and finish_s > question.deadline_s:
        return f"an end within {question.deadline_s:.3g} s would take {finish_s:.3g} s", finish_s - question.deadline_s
    return "", 0.0


def _instead(question: Question, decision: Decision, waits: Mapping[str, Wait], waited_s: float) -> Option | None:
    """The best other option that keeps the promise. What was asked for by name, or begun in a tool loop, is not changed."""
    if question.asked != AUTO or question.locked_model is not None:
        return None
    keeping = [
        rejected.option
        for rejected in decision.rejected
        if rejected.reason in _GOOD_BUT_NOT_BEST and not _broken(question, rejected.option, waits, waited_s)[0]
    ]
    return max(keeping, key=lambda option: (option.quality, -option.score_usd), default=None)
