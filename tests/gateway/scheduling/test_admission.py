from typing import Any

import msgspec
import pytest

from gateway.routing.decide import decide
from gateway.routing.decision import WorkerView
from gateway.scheduling.admission import ADMIT, AdmissionDecision, QueueEstimate, admit, predicted_s, slo_bound_s
from tests.gateway.routing.test_decide import ask, view

# Both read 100 tokens in 11 ms; 20 tokens out take 40 ms.
LARGE, SMALL = view("l", tier="large", wait_s=1.0), view("s")
QUALITY = {"small": 0.5, "large": 1.0}
WAITS = {"l": QueueEstimate(1.0, 1.5), "s": QueueEstimate(0.0, 0.0)}


def verdict(on_overload: str, fleet: tuple[WorkerView, ...] = (LARGE, SMALL), **changes: object) -> AdmissionDecision:
    waited_s = changes.pop("waited_s", 0.0)
    admitted_run = changes.pop("admitted_run", False)
    routing_request = ask(list(fleet), **{"quality": QUALITY, "ttft_slo_s": 0.2, **changes})
    decision = decide(routing_request, fleet, decision_id="d")
    return admit(routing_request, decision, WAITS, on_overload=on_overload, admitted_run=admitted_run, waited_s=waited_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("on_overload", ["queue", "degrade", "shed"])
def test_what_can_be_kept_is_admitted(on_overload: str) -> None:
    assert verdict(on_overload, ttft_slo_s=2.0) == verdict(on_overload, ttft_slo_s=None, deadline_s=5.0) == ADMIT


def test_what_cannot_waits_or_is_told_which_promise_and_by_how_much() -> None:
    assert verdict("queue").action == "queue"
    shed = verdict("shed")
    assert (shed.action, shed.missed_slo) == ("shed", "a first token within 0.2 s would take 1.51 s")
    assert shed.late_s == pytest.approx(1.311)
    assert (
        verdict("shed", ttft_slo_s=None, deadline_s=1.0).missed_slo == "an end within 1 s would take 3.05 s"
    )  # waits count twice


def test_predictions_that_come_late_count_with_their_margin() -> None:
    routing_request = ask([LARGE], quality=QUALITY, ttft_slo_s=2.0)
    decision = decide(routing_request, [LARGE], decision_id="d")
    assert admit(routing_request, decision, {"l": QueueEstimate(1.0, 1.5, margin=0.2)}, on_overload="shed") == ADMIT
    assert admit(routing_request, decision, {"l": QueueEstimate(1.0, 1.5, margin=0.4)}, on_overload="shed").action == "shed"
    assert admit(routing_request, decision, {"l": QueueEstimate(1.0, 1.5, margin=0.4, idle=True)}, on_overload="shed") == ADMIT


def test_a_promise_ends_with_the_class_or_four_times_what_it_takes_alone_or_in_time_for_its_end() -> None:
    option = decide(ask([LARGE], quality=QUALITY), [LARGE], decision_id="d").chosen
    alone = option.ttft_s - 1.0
    for changes, bound_s in (
        ({"ttft_slo_s": 2.0}, 2.0),
        ({"ttft_slo_s": alone}, 4 * alone),
        ({"ttft_slo_s": None, "deadline_s": 3.0}, 3.0 - (option.finish_s - option.ttft_s)),
        ({"ttft_slo_s": None}, float("inf")),
    ):
        assert slo_bound_s(ask([LARGE], **changes), option, WAITS["l"]) == pytest.approx(bound_s)
    assert predicted_s(option, WAITS["l"]) == pytest.approx(alone + 1.5)


def test_time_that_has_passed_counts() -> None:
    assert verdict("shed", ttft_slo_s=2.0, waited_s=1.0).action == "shed"


def test_a_turn_of_an_admitted_run_is_never_refused() -> None:
    assert verdict("shed", admitted_run=True).action == "queue"


def test_a_prompt_that_no_idle_worker_reads_in_time_is_not_refused_for_it() -> None:
    slow = msgspec.structs.replace(LARGE, wait_s=0.0, prefill_s_per_token=0.1)
    routing_request = ask([slow], quality=QUALITY, ttft_slo_s=0.2)
    decision = decide(routing_request, [slow], decision_id="d")
    assert admit(routing_request, decision, {}, on_overload="shed") == ADMIT
    assert admit(routing_request, decision, {"l": QueueEstimate(0.0, 31.0)}, on_overload="shed").action == "shed"


def test_what_has_a_deadline_waits_three_times_as_long_as_such_work_did_lately() -> None:
    late = ask([SMALL], quality=QUALITY, deadline_s=60.0)
    decision = decide(late, [SMALL], decision_id="d")
    for lately_s, action in ((19.0, "admit"), (21.0, "shed")):
        assert (
            admit(late, decision, {"s": QueueEstimate(0.0, 1.0, at_recent_rate_s=lately_s)}, on_overload="shed").action
            == action
        )


def test_another_tier_takes_it_where_that_keeps_the_promise() -> None:
    degraded = verdict("degrade")
    assert degraded.action == "degrade"
    assert degraded.alternative and degraded.alternative.worker == "s"
    assert verdict("degrade", fleet=(LARGE,)).action == "queue"


@pytest.mark.parametrize("fixed", [{"asked": "large"}, {"locked_model": "model-large"}])
def test_what_was_asked_for_or_begun_is_not_degraded(fixed: dict[str, Any]) -> None:
    assert verdict("degrade", **fixed).action == "queue"


def test_a_good_enough_worker_on_another_device_takes_it_before_anybody_is_told_no() -> None:
    busy, dear = view("b", wait_s=1.0), view("d", price=4.0)
    routing_request = ask([busy, dear], quality={"small": 1.0}, ttft_slo_s=0.2)
    decision = decide(routing_request, [busy, dear], decision_id="d")
    assert decision.chosen.worker == "b"
    estimates = {"b": QueueEstimate(1.0, 1.5), "d": QueueEstimate(0.0, 0.0)}
    for on_overload in ("shed", "degrade"):
        found = admit(routing_request, decision, estimates, on_overload=on_overload, admitted_run=True)  # type: ignore[arg-type]
        assert found.action == "admit" and found.alternative and found.alternative.worker == "d"
    one_device = {"b": "gpu", "d": "gpu"}
    assert admit(routing_request, decision, estimates, on_overload="shed", devices=one_device).action == "shed"
    assert admit(routing_request, decision, estimates | {"d": QueueEstimate(0.0, 1.5)}, on_overload="shed").action == "shed"
    assert admit(routing_request, decision, estimates, on_overload="queue").alternative is None


def test_whose_answer_would_be_too_bad_takes_nothing_from_another_device() -> None:
    assert verdict("shed").action == "shed"  # the small one is idle, and below the bar
