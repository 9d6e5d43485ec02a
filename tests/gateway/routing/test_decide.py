"""Decisions on made-up fleets: the formula's properties, then each reason."""

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.errors import ContextTooLong, NoWorker, UnknownModel
from gateway.routing.decide import decide, miss_probability
from gateway.routing.decision import MAX_REJECTED, Decision, RoutingRequest, WorkerView


def view(worker: str, *, tier: str = "small", model: str | None = None, price: float = 1.0, **changes: object) -> WorkerView:
    plain = WorkerView(
        worker=worker,
        model=model or f"model-{tier}",
        tier=tier,
        healthy=True,
        max_context=4096,
        usd_per_s=price,
        max_sequences=8,
        wait_s=0.0,
        overhead_s=0.001,
        prefill_s_per_token=0.0001,
        tpot_s=0.002,
        decode_device_s_per_token=0.002,
    )
    return msgspec.structs.replace(plain, **changes)


def ask(fleet: list[WorkerView], **changes: object) -> RoutingRequest:
    plain = RoutingRequest(
        asked="auto",
        candidates=("small", "large"),
        prompt_tokens={one.worker: 100 for one in fleet},
        cached_tokens={},
        max_output_tokens=64,
        expected_output_tokens=20.0,
        quality={"small": 0.95, "large": 1.0},
        quality_bar=0.9,
    )
    return msgspec.structs.replace(plain, **changes)


def run(fleet: list[WorkerView], **changes: object) -> Decision:
    return decide(ask(fleet, **changes), fleet, decision_id="d", route="r")


SMALL, LARGE = view("s", tier="small"), view("l", tier="large", price=4.0)

numbers = st.floats(0, 1, allow_subnormal=False)
views = st.builds(
    view,
    st.text("abcdef", min_size=1, max_size=4),
    tier=st.sampled_from(["small", "large"]),
    price=st.floats(0, 10, allow_subnormal=False),
    healthy=st.booleans(),
    wait_s=numbers,
    overhead_s=numbers,
    prefill_s_per_token=numbers,
    tpot_s=numbers,
    decode_device_s_per_token=numbers,
    max_context=st.sampled_from([50, 4096]),
)
fleets = st.lists(views, min_size=1, max_size=12, unique_by=lambda one: one.worker)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[WorkerView], RoutingRequest]:
    fleet = draw(fleets)
    workers = [one.worker for one in fleet]
    routing_request = ask(
        fleet,
        cached_tokens={worker: draw(st.integers(0, 120)) for worker in workers},
        quality={"small": draw(numbers), "large": 1.0},
        quality_bar=draw(numbers),
        mistake_cost=draw(st.sampled_from([0.0, 0.5, 20.0])),
        ttft_slo_s=draw(st.none() | st.floats(0.001, 10)),
        deadline_s=draw(st.none() | st.floats(0.001, 10)),
        miss_penalty_usd=draw(numbers),
        locked_model=draw(st.sampled_from([None, "model-small", "model-large"])),
        warm_worker=draw(st.sampled_from([None, *workers])),
        expected_remaining_turns=draw(st.floats(0, 10, allow_subnormal=False)),
        excluded_workers=tuple(draw(st.sets(st.sampled_from(workers), max_size=2))),
    )
    return fleet, routing_request


def decided(fleet: list[WorkerView], routing_request: RoutingRequest) -> Decision:
    try:
        return decide(routing_request, fleet, decision_id="d")
    except (NoWorker, ContextTooLong):
        assume(False)
        raise


@given(cases())
def test_the_chosen_is_never_beaten_by_an_allowed_one(case: tuple[list[WorkerView], RoutingRequest]) -> None:
    fleet, routing_request = case
    decision = decided(fleet, routing_request)
    hard = {"not_allowed", "context_too_long", "not_healthy", "below_quality_bar", "locked_elsewhere"}
    for rejected in decision.rejected:
        if rejected.reason not in hard:
            assert rejected.option.score_usd >= decision.chosen.score_usd


@given(cases(), st.floats(0, 5))
def test_a_further_worker_that_is_worse_changes_nothing(case: tuple[list[WorkerView], RoutingRequest], worse: float) -> None:
    fleet, routing_request = case
    chosen = decided(fleet, routing_request).chosen
    original = next(one for one in fleet if one.worker == chosen.worker)
    other = msgspec.structs.replace(original, worker="~", wait_s=original.wait_s + worse, usd_per_s=original.usd_per_s + worse)
    tokens = routing_request.prompt_tokens | {"~": 100}
    cached = routing_request.cached_tokens | {"~": routing_request.cached_tokens[chosen.worker]}
    warm = routing_request.warm_worker
    assume(warm != chosen.worker or worse > 0)
    routing_request = msgspec.structs.replace(routing_request, prompt_tokens=tokens, cached_tokens=cached)
    assert decide(routing_request, [other, *fleet], decision_id="d").chosen == chosen


@given(cases(), st.integers(0, 120))
def test_more_cached_tokens_never_make_a_worker_less_attractive(
    case: tuple[list[WorkerView], RoutingRequest], more: int
) -> None:
    fleet, routing_request = case
    chosen = decided(fleet, routing_request).chosen
    cached = routing_request.cached_tokens | {chosen.worker: routing_request.cached_tokens[chosen.worker] + more}
    again = decided(fleet, msgspec.structs.replace(routing_request, cached_tokens=cached)).chosen
    assert again.worker == chosen.worker
    assert again.score_usd <= chosen.score_usd


@given(cases(), st.randoms())
def test_the_order_of_the_fleet_does_not_matter(case: tuple[list[WorkerView], RoutingRequest], random: object) -> None:
    fleet, routing_request = case
    first = decided(fleet, routing_request)
    random.shuffle(fleet)  # type: ignore[attr-defined]
    assert decided(fleet, routing_request).chosen == first.chosen


@given(cases())
def test_every_worker_is_chosen_or_counted(case: tuple[list[WorkerView], RoutingRequest]) -> None:
    fleet, routing_request = case
    decision = decided(fleet, routing_request)
    assert sum(decision.rejected_by_reason.values()) == len(fleet) - 1
    assert len(decision.rejected) == min(MAX_REJECTED, len(fleet) - 1)


def test_cheap_worker_is_chosen_when_it_is_good_enough() -> None:
    decision = run([LARGE, SMALL])
    assert (decision.chosen.worker, decision.reason) == ("s", "cheapest_good_enough")
    assert [(one.option.worker, one.reason) for one in decision.rejected] == [("l", "costs_more")]
    assert decision.route == "r"


def test_the_numbers_are_those_of_the_formula() -> None:
    option = run([SMALL, LARGE], cached_tokens={"s": 40}).chosen
    assert option.ttft_s == pytest.approx(0.001 + 60 * 0.0001)
    assert option.finish_s == pytest.approx(option.ttft_s + 20 * 0.002)
    assert option.usd == pytest.approx(1.0 * (0.001 + 60 * 0.0001 + 20 * 0.002))
    assert (option.switch_usd, option.miss_probability, option.score_usd) == (0.0, 0.0, option.usd)


def test_a_whole_cached_prompt_still_computes_one_token() -> None:
    assert run([SMALL, LARGE], cached_tokens={"s": 100}).chosen.cached_tokens == 99


def test_expensive_worker_is_chosen_when_the_cheap_one_is_below_the_bar() -> None:
    decision = run([SMALL, LARGE], quality={"small": 0.89, "large": 1.0})
    assert (decision.chosen.worker, decision.reason) == ("l", "cheapest_good_enough")
    assert decision.rejected[0].reason == "below_quality_bar"


def test_best_worker_is_chosen_when_none_is_over_the_bar() -> None:
    decision = run([SMALL, LARGE], quality={"small": 0.3, "large": 0.6})
    assert (decision.chosen.worker, decision.reason) == ("l", "best_quality")


def test_a_doubtful_answer_has_to_save_enough() -> None:
    typical = 4.0 * (0.001 + 256 * 0.0001 + 32 * 0.002)
    doubtful = {"small": 0.8, "large": 1.0}
    saving = 3.0 * (0.001 + 100 * 0.0001 + 20 * 0.002)
    even = saving / (0.2 * typical)
    cheap = run([SMALL, LARGE], quality=doubtful, quality_bar=0.5, mistake_cost=even * 0.99)
    assert cheap.chosen.worker == "s"
    assert cheap.chosen.risk_usd == pytest.approx(0.99 * saving)
    safe = run([SMALL, LARGE], quality=doubtful, quality_bar=0.5, mistake_cost=even * 1.01)
    assert safe.chosen.worker == "l"
    assert safe.rejected[0].reason == "too_risky"
    longer = {"s": 3000, "l": 3000}
    assert (
        run([SMALL, LARGE], quality=doubtful, quality_bar=0.5, mistake_cost=even * 1.01, prompt_tokens=longer).chosen.tier
        == "small"
    )
    assert run([SMALL, LARGE], quality=doubtful, quality_bar=0.9, prompt_tokens=longer).chosen.tier == "large"


def test_leaving_the_warm_worker_costs_the_prefill_of_its_pages() -> None:
    warm, cool = view("warm", decode_device_s_per_token=0.0021), view("cool")
    assert run([warm, cool], warm_worker="warm").chosen.worker == "cool"
    stayed = run([warm, cool], warm_worker="warm", expected_remaining_turns=5.0)
    assert stayed.chosen.worker == "warm"
    assert stayed.rejected[0].option.switch_usd == pytest.approx((100 + 20) * 0.0001)
    nearly_over = run([warm, cool], warm_worker="warm", expected_remaining_turns=0.5)
    assert nearly_over.rejected[0].option.switch_usd == pytest.approx(0.5 * (100 + 20) * 0.0001)
    known = run([warm, cool], warm_worker="warm", expected_remaining_turns=5.0, cached_tokens={"warm": 50})
    assert known.rejected[0].option.switch_usd == pytest.approx((50 + 20) * 0.0001)


def test_leaving_a_more_expensive_worker_costs_no_return() -> None:
    decision = run([SMALL, LARGE], warm_worker="l", expected_remaining_turns=5.0)
    assert decision.chosen.worker == "s"
    assert decision.chosen.switch_usd == 0.0


def test_a_tool_loop_stays_on_its_model() -> None:
    decision = run([SMALL, LARGE], locked_model="model-large")
    assert (decision.chosen.worker, decision.reason) == ("l", "locked_tool_loop")
    assert decision.rejected[0].reason == "locked_elsewhere"


def test_a_tool_loop_on_a_model_below_the_bar_stays_there() -> None:
    decision = run([SMALL, LARGE], locked_model="model-small", quality={"small": 0.1, "large": 1.0})
    assert (decision.chosen.worker, decision.reason) == ("s", "locked_tool_loop")


def test_lock_on_a_lost_model_is_released_and_the_bar_applies() -> None:
    dead = msgspec.structs.replace(SMALL, healthy=False)
    other = view("s2", tier="small", model="another-small")
    decision = run([dead, other, LARGE], locked_model="model-small", quality={"small": 0.1, "large": 1.0})
    assert decision.chosen.worker == "l"


@pytest.mark.parametrize("asked", ["large", "model-large"])
def test_requested_model_is_chosen(asked: str) -> None:
    decision = run([SMALL, LARGE], asked=asked)
    assert (decision.chosen.worker, decision.reason) == ("l", "asked_by_name")
    assert decision.rejected[0].reason == "not_allowed"


def test_requested_small_tier_is_chosen_below_the_bar() -> None:
    assert run([SMALL, LARGE], asked="small", quality={"small": 0.1, "large": 1.0}).chosen.worker == "s"


def test_only_candidate_has_its_own_reason() -> None:
    assert run([msgspec.structs.replace(SMALL, healthy=False), LARGE]).reason == "only_candidate"


def test_failover_leaves_the_lost_worker_out() -> None:
    twin = view("s2", tier="small")
    decision = run([SMALL, twin, LARGE], excluded_workers=("s",))
    assert (decision.chosen.worker, decision.reason) == ("s2", "failover")


def test_predicted_slo_miss_changes_the_choice() -> None:
    busy = msgspec.structs.replace(SMALL, wait_s=2.0)
    assert run([busy, LARGE], ttft_slo_s=0.2).chosen.worker == "s"
    moved = run([busy, LARGE], ttft_slo_s=0.2, miss_penalty_usd=1.0)
    assert moved.chosen.worker == "l"
    assert moved.rejected[0].option.miss_probability > 0.99


def test_equal_cost_goes_to_the_faster_then_to_the_first_name() -> None:
    slow, b, a = view("slow", wait_s=1.0), view("b"), view("a")
    decision = run([slow, b, a])
    assert decision.chosen.worker == "a"
    assert {one.reason for one in decision.rejected} == {"slower_same_cost"}


def test_a_prompt_longer_than_any_context_names_both_numbers() -> None:
    with pytest.raises(ContextTooLong, match=r"5,000 tokens.*4,096"):
        run([SMALL, LARGE], prompt_tokens={"s": 5000, "l": 5000})


def test_no_worker_up_and_unknown_model_are_different_errors() -> None:
    with pytest.raises(NoWorker):
        run([msgspec.structs.replace(SMALL, healthy=False)])
    with pytest.raises(UnknownModel):
        run([SMALL], asked="huge")
    with pytest.raises(UnknownModel):
        run([])


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.none() | st.floats(0, 1e9))
def test_later_prediction_never_lowers_the_miss_probability(a: float, b: float, slo_s: float | None) -> None:
    early, late = sorted([a, b])
    assert 0 <= miss_probability(early, slo_s) <= miss_probability(late, slo_s) <= 1


def test_miss_probability_is_half_where_the_prediction_equals_the_slo() -> None:
    assert miss_probability(0.2, 0.2) == 0.5
    assert miss_probability(0.1, 0.2) == pytest.approx(0.06, abs=0.01)


def test_worker_without_a_prompt_is_rejected() -> None:
    fleet = [view("old", price=9.0), view("new", price=0.1)]
    made = decide(ask(fleet, prompt_tokens={"old": 100}), fleet, decision_id="d")
    assert made.chosen.worker == "old"
    with pytest.raises(NoWorker):
        decide(ask(fleet, prompt_tokens={}), fleet, decision_id="d")
