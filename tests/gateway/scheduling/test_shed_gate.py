"""Flows that are being shed."""

from gateway.scheduling.shed_gate import EVALUATE_EVERY, MAX_FLOWS, SHEDDING_S, FlowKey, ShedGate

FLOW, OTHER = FlowKey("a", "default", "interactive", "auto"), FlowKey("b", "default", "interactive", "auto")


def test_flow_is_shed_after_a_refusal_until_it_is_old() -> None:
    gate = ShedGate()
    assert gate.is_open(0.0) and not gate.is_shedding(FLOW, 0.0)
    gate.record_refusal(FLOW, 1.0)
    assert not gate.is_open(1.0 + SHEDDING_S) and gate.is_shedding(FLOW, 1.0 + SHEDDING_S)
    assert not gate.is_shedding(OTHER, 1.0)
    assert gate.is_open(1.1 + SHEDDING_S) and not gate.is_shedding(FLOW, 1.1 + SHEDDING_S)


def test_one_request_in_eight_is_evaluated_while_its_flow_is_shed() -> None:
    gate = ShedGate()
    gate.record_refusal(FLOW, 0.0)
    assert sum(not gate.is_shedding(FLOW, 0.1) for _ in range(5 * EVALUATE_EVERY)) == 5


def test_flows_are_bounded_and_the_oldest_refusal_is_forgotten() -> None:
    gate = ShedGate()
    gate.record_refusal(FLOW, 0.0)
    for number in range(MAX_FLOWS):
        gate.record_refusal(FlowKey(str(number), "", "", ""), 0.0)
    assert not gate.is_shedding(FLOW, 0.0) and len(gate._refused_at) == MAX_FLOWS
