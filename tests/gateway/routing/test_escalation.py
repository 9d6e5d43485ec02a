"""A small model's doubtful answer begins anew on the best tier, before the caller has seen a byte of it."""

import random
from pathlib import Path

import msgspec
import pytest

from gateway.ledger.rows import RequestRow
from gateway.policy.schema import Escalate
from gateway.request import Message, Request
from gateway.routing.decide import decide
from gateway.routing.decision import Option, RoutingRequest
from gateway.routing.escalation import Escalating, Escalation, EscalationPlan, Shares, log_odds, unsureness
from gateway.training.fit_escalation import fit_escalation
from gateway.training.outcome import Outcome, TrainingError
from tests.gateway.routing.test_decide import view
from tests.served import Served, ask, fake, serve, until


def chances(low: float, high: float) -> tuple[float, ...]:
    return tuple(low + (high - low) * rank / 10 for rank in range(11))


FITTED = Escalation(
    tokens=3,
    bar=0.5,
    bias=0.0,
    prior=0.5,
    doubt=2.0,
    shares=(Shares(0.9, chances(0.4, 0.9), chances(0.0, 0.6)), Shares(0.99, chances(0.45, 1.0), chances(0.1, 0.6))),
    catch=0.8,
    alarm=0.1,
    kept=0.98,
    share=0.2,
    rows=100,
)


def escalating(served: Served) -> None:
    policy = served.gateway.policy
    route = msgspec.structs.replace(policy.routes[0], escalate=Escalate())
    served.gateway.apply(msgspec.structs.replace(policy, routes=(route,)))

    def judge(request: Request) -> dict[str, float]:
        return {"small": 0.95, "large": 1.0}

    served.gateway.pipeline.preparer.estimate_quality = judge
    served.gateway.pipeline.preparer.escalations = {"small": FITTED}
    served.gateway.fleet.usd_per_s["nano-0"] *= 20


@pytest.mark.parametrize("stream", [False, True])
async def test_a_doubtful_answer_comes_from_the_best_tier_and_both_are_charged(tmp_path: Path, stream: bool) -> None:
    pico, nano = fake("pico", confidence=0.05, step_s=0.002), fake("nano")
    async with serve(tmp_path, workers={"pico-0": pico, "nano-0": nano}) as served:
        escalating(served)
        body = ask(max_tokens=500, stream=stream)
        async with served.http.post(f"{served.url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            assert answer.headers["x-headway-model"] == "nano"
            assert answer.headers["x-headway-reason"] == "escalated"
            await answer.read()
        await until(lambda: any(isinstance(row, RequestRow) for row in served.ledger.rows))
        row = next(row for row in served.ledger.rows if isinstance(row, RequestRow))
        assert row.model == "nano"
        assert row.output_tokens == 500
        assert row.device_s == pytest.approx(pico.attributed_s + nano.attributed_s)
        assert row.all_large_usd == pytest.approx(nano.attributed_s * served.gateway.fleet.usd_per_s["nano-0"])
        assert row.all_large_usd < row.usd  # what the lost attempt cost is no saving
        assert pico.attributed_s > 0
        assert pico.num_live == 0
        assert pico.attributed_s < 0.1  # of 500 steps it made few
        assert pico.submitted[0].sampling.confidence
        assert not nano.submitted[0].sampling.confidence


async def test_confident_answer_is_not_escalated(tmp_path: Path) -> None:
    workers = {"pico-0": fake("pico", confidence=0.9), "nano-0": fake("nano")}
    async with serve(tmp_path, workers=workers) as served:
        escalating(served)
        status, answer = await served.chat(ask(max_tokens=8))
        assert status == 200
        assert answer["model"] == "pico"
        assert answer["usage"]["completion_tokens"] == 8
        assert not workers["nano-0"].submitted


async def test_doubtful_answer_stands_without_a_best_tier(tmp_path: Path) -> None:
    pico, nano = fake("pico", confidence=0.05, step_s=0.01), fake("nano")
    async with serve(tmp_path, workers={"pico-0": pico, "nano-0": nano}) as served:
        escalating(served)
        nano.drop_links()
        nano.num_hang_ups = 1000
        await until(lambda: not served.gateway.fleet.clients["nano-0"].healthy)
        status, answer = await served.chat(ask(max_tokens=8))
        assert status == 200
        assert answer["model"] == "pico"


def test_the_chance_and_the_quality_after_follow_from_catch_and_alarm() -> None:
    one = EscalationPlan(tokens=8, threshold=0.5, catch=0.8, alarm=0.1)
    assert one.chance(1.0) == pytest.approx(0.1)
    assert one.chance(0.0) == pytest.approx(0.8)
    assert one.quality_after(0.5) == pytest.approx(0.9)


def offered(prompt_tokens: int, *, mistake_cost: float, bar: float | None = None) -> Option:
    """What the small tier is expected to give for a question that the large one answers five times as dear."""
    fleet = [
        view(tier, tier=tier, model=tier, price=dear, max_context=8000, decode_device_s_per_token=0.001)
        for tier, dear in (("small", 1.0), ("large", 5.0))
    ]
    routing_request = RoutingRequest(
        asked="auto",
        candidates=("small", "large"),
        prompt_tokens={"small": prompt_tokens, "large": prompt_tokens},
        cached_tokens={},
        max_output_tokens=64,
        expected_output_tokens=8,
        quality={"small": 0.9, "large": 1.0},
        quality_bar=0.0,
        mistake_cost=mistake_cost,
        escalations={"small": Escalating(fitted=FITTED, bar=bar)},
    )
    found = decide(routing_request, fleet, decision_id="d")
    return next(one for one in (found.chosen, *(other.option for other in found.rejected)) if one.tier == "small")


def test_escalation_is_more_likely_where_the_best_tier_is_cheap() -> None:
    short, long = offered(20, mistake_cost=1.5), offered(400, mistake_cost=1.5)
    assert short.escalate_below > long.escalate_below > 0.0
    assert short.escalation_chance > long.escalation_chance


def test_escalation_is_more_likely_where_a_mistake_is_expensive() -> None:
    cheap, dear = offered(200, mistake_cost=1.0), offered(200, mistake_cost=4.0)
    assert cheap.escalate_below < dear.escalate_below
    assert cheap.quality < dear.quality


def test_answer_that_never_escalates_is_not_held_back() -> None:
    one = offered(4000, mistake_cost=1.5)
    assert (one.holdback_tokens, one.escalate_below, one.escalation_chance) == (0, 0.0, 0.0)
    assert one.quality == pytest.approx(0.9)


@pytest.mark.parametrize(("mistake_cost", "bar", "told"), [(0.0, None, 0.5), (1.5, 0.7, 0.7)])
def test_confidence_bar_is_the_routes_or_the_fitted_one_without_a_mistake_cost(
    mistake_cost: float, bar: float | None, told: float
) -> None:
    for tokens in (20, 4000):
        one = offered(tokens, mistake_cost=mistake_cost, bar=bar)
        assert one.escalate_below == FITTED.at(0.9, bar=told).threshold
        assert one.holdback_tokens == FITTED.tokens


def rows(number: int = 100) -> list[Outcome]:
    """Half of the answers are wrong, and those are the less confident half."""
    return [
        Outcome(
            messages=(Message(role="user", content=f"q{i}"),),
            outcomes={"small": float(i % 2), "large": 1.0},
            confidence={"small": 0.9 - 0.001 * i if i % 2 else 0.3 + 0.001 * i},
        )
        for i in range(number)
    ]


def even(row: Outcome) -> float:
    return 0.5


def test_fitted_bar_is_the_lowest_that_keeps_the_wanted_accuracy() -> None:
    found = fit_escalation(rows(), even, tier="small", top="large", keep=1.0, tokens=4)
    assert 0.39 < found.at(0.5).threshold < 0.81
    assert (found.catch, found.alarm, found.kept, found.share) == (1.0, 0.0, 1.0, 0.5)
    half = fit_escalation(rows(), even, tier="small", top="large", keep=0.75, tokens=4)
    assert half.bar < found.bar
    assert half.share == 0.25
    assert fit_escalation(rows(), even, tier="small", top="large", keep=0.5, tokens=4).share == 0.0


def noisy_rows(number: int = 4000) -> tuple[list[Outcome], dict[str, float]]:
    """Questions of which one in twenty, a half or nearly all are answered well; a bad answer is mostly an unsure one."""
    rng, estimates = random.Random(3), {}
    found = []
    for i in range(number):
        quality = rng.choice([0.05, 0.5, 0.95])
        good = rng.random() < quality
        confidence = min(0.999, max(0.01, rng.gauss(0.8 if good else 0.5, 0.2)))
        estimates[f"q{i}"] = quality
        message = Message(role="user", content=f"q{i}")
        found.append(
            Outcome(messages=(message,), outcomes={"small": float(good), "large": 1.0}, confidence={"small": confidence})
        )
    return found, estimates


def test_confidence_bar_falls_with_estimated_quality() -> None:
    outcomes, estimates = noisy_rows()
    found = fit_escalation(
        outcomes, lambda row: estimates[row.messages[0].content], tier="small", top="large", keep=0.95, tokens=4
    )
    assert found.at(0.95).threshold < found.at(0.5).threshold < found.at(0.05).threshold
    assert found.at(0.95).catch < found.at(0.5).catch < found.at(0.05).catch
    assert found.at(0.95).alarm < found.at(0.5).alarm < found.at(0.05).alarm
    for quality in (0.05, 0.5, 0.95):
        escalating = found.at(quality)
        alike = [row for row in outcomes if estimates[row.messages[0].content] == quality]
        for good, told in ((1.0, escalating.alarm), (0.0, escalating.catch)):
            mine = [row for row in alike if row.outcomes["small"] == good]
            share = sum(row.confidence["small"] < escalating.threshold for row in mine) / len(mine)
            assert share == pytest.approx(told, abs=0.06)


def test_bar_with_the_estimate_escalates_less_for_the_same_accuracy() -> None:
    outcomes, estimates = noisy_rows()
    asked = {"keep": 0.95, "tokens": 4, "tier": "small", "top": "large"}
    blind = fit_escalation(outcomes, even, **asked)  # type: ignore[arg-type]
    seeing = fit_escalation(outcomes, lambda row: estimates[row.messages[0].content], **asked)  # type: ignore[arg-type]
    assert seeing.kept >= 0.95 <= blind.kept
    assert seeing.share < 0.9 * blind.share


@pytest.mark.parametrize(("bar", "least", "most"), [(0.0, 0.0, 0.0), (1.0, 1.0, 2.0), (0.5, 0.01, 0.99)])
def test_threshold_is_where_the_probability_equals_the_bar(bar: float, least: float, most: float) -> None:
    threshold = FITTED.at(0.8, bar=bar).threshold
    assert least <= threshold <= most
    if 0 < bar < 1:
        chance = FITTED.bias + FITTED.prior * log_odds(0.8) - FITTED.doubt * unsureness(threshold)
        assert chance == pytest.approx(log_odds(bar), abs=1e-6)


def test_too_few_outcomes_with_confidence_are_refused() -> None:
    with pytest.raises(TrainingError, match="at least 50"):
        fit_escalation(rows(10), even, tier="small", top="large", keep=1.0, tokens=4)
