"""Deciding among a short list gives what deciding among all gives, to the last digit."""

import random

import pytest
from msgspec import structs

from gateway.errors import HeadwayError
from gateway.routing.decide import decide
from gateway.routing.decision import MAX_REJECTED, Decision, RoutingRequest, WorkerView
from gateway.routing.escalation import Escalating, Escalation, Shares
from gateway.routing.shortlist import Short, Shortlist

FITTED = Escalation(
    tokens=4,
    bar=0.5,
    bias=0.0,
    prior=0.5,
    doubt=2.0,
    shares=(Shares(0.2, (0.1, 0.4, 0.9), (0.0, 0.2, 0.6)), Shares(0.9, (0.5, 0.9, 1.0), (0.1, 0.6, 0.7))),
    catch=0.6,
    alarm=0.1,
    kept=0.98,
    share=0.2,
    rows=100,
)
MODELS = (("pico", "small"), ("pico-b", "small"), ("nano", "large"), ("mega", "huge"))


def a_view(rng: random.Random, number: int, *, alike: bool) -> WorkerView:
    model, tier = rng.choice(MODELS)

    def of(number: float) -> float:
        return number if alike else number * rng.uniform(0.5, 2.0)

    return WorkerView(
        worker=f"w{number}",
        model=model,
        tier=tier,
        healthy=rng.random() > 0.1,
        max_context=rng.choice((2_000, 200_000)),
        usd_per_s=of({"small": 1.0, "large": 4.0, "huge": 9.0}[tier]),
        max_sequences=8,
        wait_s=rng.choice((0.0, 0.0, rng.random())),
        overhead_s=of(0.001),
        prefill_s_per_token=of(1e-4),
        tpot_s=of(0.002),
        decode_device_s_per_token=of(0.001),
    )


def a_question(rng: random.Random, fleet: list[WorkerView]) -> RoutingRequest:
    workers = [view.worker for view in fleet]
    made_for = workers if rng.random() < 0.5 else rng.sample(workers, rng.randint(1, len(workers)))
    tokens = {worker: rng.choice((100, 3_000)) for worker in made_for}
    if rng.random() < 0.5:
        tokens = dict.fromkeys(made_for, 1_500)
    escalating = Escalating(fitted=FITTED, tokens=rng.choice((None, 40)), bar=rng.choice((None, None, 0.5, 0.0)))
    return RoutingRequest(
        asked=rng.choice(("auto", "auto", "auto", "small", "nano")),
        candidates=rng.choice((("small", "large"), ("pico", "nano"), ("large",), ("small", "large", "huge"))),
        prompt_tokens=tokens,
        cached_tokens={worker: rng.randint(0, 3_000) for worker in rng.sample(workers, min(5, len(workers)))},
        max_output_tokens=64,
        expected_output_tokens=rng.uniform(1, 100),
        quality=rng.choice(({}, {"small": rng.random(), "large": rng.random(), "huge": 1.0}, {"small": 0.5, "large": 0.5})),
        quality_bar=rng.choice((0.0, 0.5, 1.0)),
        mistake_cost=rng.choice((0.0, 0.5, 20.0)),
        ttft_slo_s=rng.choice((None, 0.0, 0.3)),
        deadline_s=rng.choice((None, 1.0)),
        miss_penalty_usd=rng.choice((0.0, 0.1)),
        locked_model=rng.choice((None, None, "pico", "nano")),
        warm_worker=rng.choice((None, *workers)),
        expected_remaining_turns=rng.uniform(0, 3),
        excluded_workers=tuple(rng.sample(workers, rng.choice((0, 0, 1)))),
        fallbacks=rng.choice(((), ("huge",))),
        escalations=rng.choice(({}, {"small": escalating})),
    )


def among(routing_request: RoutingRequest, short: Short) -> Decision | str:
    try:
        return decide(routing_request, short.views, decision_id="d", fleet_summary=short.fleet_summary)
    except HeadwayError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(300))
def test_shortlist_gives_the_decision_of_the_whole_fleet(seed: int) -> None:
    rng = random.Random(seed)
    fleet = [a_view(rng, number, alike=seed % 2 == 0) for number in range(rng.choice((1, 5, 60)))]
    shortlist = Shortlist(fleet)
    routing_request: RoutingRequest | None = None
    for _ in range(5):
        changed = rng.randrange(len(fleet))
        old, new = fleet[changed], a_view(rng, changed, alike=False)
        if rng.random() < 0.6:  # only numbers have changed: what is kept of the fleet still holds
            new = structs.replace(new, model=old.model, tier=old.tier, healthy=old.healthy, max_context=old.max_context)
        fleet[changed] = new
        shortlist.put(fleet[changed])
        before, routing_request = routing_request, a_question(rng, fleet)
        if before is not None and rng.random() < 0.5:
            routing_request = structs.replace(routing_request, asked=before.asked, candidates=before.candidates)
        wanted = among(routing_request, Short(fleet, None))
        short = shortlist.take(routing_request)
        assert among(routing_request, short) == wanted
        assert short.fleet_summary is None or len(short.views) <= MAX_REJECTED + 5
