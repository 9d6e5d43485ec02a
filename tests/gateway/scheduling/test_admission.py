from typing import Any

import msgspec
import pytest

from gateway.routing.decide import decide
from gateway.routing.decision import WorkerView
from gateway.scheduling.admission import ADMIT, AdmissionDecision, QueueEstimate, admit, predicted_s
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
def test_request_whose_slo_can_be_met_is_admitted(on_overload: str) -> None:
    assert verdict(on_overload, ttft_slo_s=2.0) == verdict(on_overload, ttft_slo_s=None, deadline_s=5.0) == ADMIT


def test_refusal_names_the_slo_and_the_predicted_time() -> None:
    assert verdict("queue").action == "queue"
    shed = verdict("shed")
    assert (shed.action, shed.missed_slo) == ("shed", "a first token within 0.2 s would take 1.51 s")
    assert shed.late_s == pytest.approx(1.311)
    assert verdict("shed", ttft_slo_s=None, deadline_s=1.0).missed_slo == "an end within 1 s would take 1.55 s"


def test_prediction_counts_with_its_margin() -> None:
    routing_request = ask([LARGE], quality=QUALITY, ttft_slo_s=2.0)
    decision = decide(routing_request, [LARGE], decision_id="d")
    assert admit(routing_request, decision, {"l": QueueEstimate(1.0, 1.5, margin=0.2)}, on_overload="shed") == ADMIT
    assert admit(routing_request, decision, {"l": QueueEstimate(1.0, 1.5, margin=0.4)}, on_overload="shed").action == "shed"
    assert admit(routing_request, decision, {"l": QueueEstimate(1.0, 1.5, margin=0.4, idle=True)}, on_overload="shed") == ADMIT


def test_ttft_within_a_multiple_of_the_idle_worker_is_admitted() -> None:
    option = decide(ask([LARGE], quality=QUALITY), [LARGE], decision_id="d").chosen
    alone_s = option.ttft_s - 1.0
    assert predicted_s(option, WAITS["l"]) == pytest.approx(alone_s + 1.5)
    factor = (alone_s + 1.5) / alone_s
    for changes, action in ((factor * 1.01, "admit"), (factor * 0.99, "shed")):
        routing_request = ask([LARGE], quality=QUALITY, ttft_slo_s=alone_s, ttft_idle_factor=changes)
        decision = decide(routing_request, [LARGE], decision_id="d")
        assert admit(routing_request, decision, WAITS, on_overload="shed").action == action


def test_time_waited_counts_towards_the_slo() -> None:
    assert verdict("shed", ttft_slo_s=2.0, waited_s=1.0).action == "shed"


def test_turn_of_an_admitted_run_is_never_shed() -> None:
    assert verdict("shed", admitted_run=True).action == "queue"


def test_prompt_too_long_for_the_slo_is_admitted_on_an_idle_worker() -> None:
    slow = msgspec.structs.replace(LARGE, wait_s=0.0, prefill_s_per_token=0.1)
    routing_request = ask([slow], quality=QUALITY, ttft_slo_s=0.2)
    decision = decide(routing_request, [slow], decision_id="d")
    assert admit(routing_request, decision, {}, on_overload="shed") == ADMIT
    assert admit(routing_request, decision, {"l": QueueEstimate(0.0, 31.0)}, on_overload="shed").action == "shed"


def test_degrade_takes_another_tier_that_meets_the_slo() -> None:
    degraded = verdict("degrade")
    assert degraded.action == "degrade"
    assert degraded.alternative and degraded.alternative.worker == "s"
    assert verdict("degrade", fleet=(LARGE,)).action == "queue"


@pytest.mark.parametrize("fixed", [{"asked": "large"}, {"locked_model": "model-large"}])
def test_requested_or_locked_model_is_not_degraded(fixed: dict[str, Any]) -> None:
    assert verdict("degrade", **fixed).action == "queue"


def test_good_enough_worker_on_another_device_takes_the_request_before_it_is_shed() -> None:
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


def test_worker_below_the_quality_bar_is_no_alternative() -> None:
    assert verdict("shed").action == "shed"  # the small one is idle, and below the bar
