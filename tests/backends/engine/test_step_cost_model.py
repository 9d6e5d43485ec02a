"""Shares of a step sum to it exactly, follow what was caused, and the fit finds the coefficients."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine.busy_meter import BusyMeter
from backends.engine.step_cost_model import Caused, StepCostModel

CAUSED = st.builds(Caused, st.integers(1, 4096), st.floats(0, 1e5), st.integers(0, 2**40))


def true_cost(caused: list[Caused]) -> float:
    tokens = sum(one.tokens for one in caused)
    mixed = sum(one.tokens * one.context for one in caused)
    return 1e-3 + 2e-5 * tokens + 3e-9 * mixed + 1e-10 * sum(one.kv_bytes for one in caused)


def some_step(rng: random.Random) -> list[Caused]:
    caused = []
    for _ in range(rng.randrange(1, 9)):
        tokens, context = rng.choice((1, 1, 1, 64, 256)), rng.randrange(1, 3000)
        caused.append(Caused(tokens, float(context), context * 8192))
    return caused


@given(st.lists(CAUSED, min_size=1, max_size=20), st.integers(0, 10**12), st.lists(CAUSED, min_size=1), st.floats(1e-6, 100))
def test_shares_sum_to_the_step_exactly(caused: list[Caused], dt_ns: int, seen: list[Caused], seen_s: float) -> None:
    cost = StepCostModel()
    for _ in range(2):
        shares = cost.split(caused, dt_ns)
        assert sum(shares) == dt_ns and min(shares) >= 0
        cost.observe(seen, seen_s)


def test_fit_recovers_the_cost_of_a_step() -> None:
    rng, cost = random.Random(0), StepCostModel()
    for _ in range(1500):
        step = some_step(rng)
        cost.observe(step, true_cost(step) * rng.uniform(0.9, 1.1))
    a, b, c, d = cost.coefficients
    for step in (some_step(rng) for _ in range(50)):
        found = a + sum(one.tokens * (b + c * one.context) + d * one.kv_bytes for one in step)
        assert found == pytest.approx(true_cost(step), rel=0.15)
    assert min(a, b, c, d) >= 0


def test_disturbed_steps_do_not_bias_the_fit() -> None:
    rng, cost = random.Random(3), StepCostModel()
    for _ in range(1500):
        step = some_step(rng)
        cost.observe(step, true_cost(step) * rng.uniform(0.98, 1.02) * (rng.uniform(2, 6) if rng.random() < 0.1 else 1.0))
    a, b, c, d = cost.coefficients
    for step in (some_step(rng) for _ in range(50)):
        found = a + sum(one.tokens * (b + c * one.context) + d * one.kv_bytes for one in step)
        assert found == pytest.approx(true_cost(step), rel=0.05)


def test_sequence_with_more_work_pays_more_and_the_fixed_part_is_shared() -> None:
    rng, cost = random.Random(1), StepCostModel()
    for _ in range(500):
        step = some_step(rng)
        cost.observe(step, true_cost(step))
    decode, prefill = cost.split([Caused(1, 100.0, 100 * 8192), Caused(256, 128.0, 256 * 8192)], 10_000_000)
    assert 0 < decode < prefill
    assert cost.split([Caused(1, 50.0, 50), Caused(1, 50.0, 50)], 1001) in ([500, 501], [501, 500])


def test_a_pass_over_a_group_of_rows_is_shared_by_those_in_it() -> None:
    rng, cost = random.Random(2), StepCostModel()
    for _ in range(800):
        step = [Caused(1, 100.0, 100, rng.randrange(4)) for _ in range(rng.randrange(1, 9))]
        cost.observe(step, 1e-3 + 4e-4 * len({one.group for one in step}) + 1e-4 * len(step))
    alone, first, second = cost.split([Caused(1, 100.0, 100, 3), Caused(1, 100.0, 100, 2), Caused(1, 100.0, 100, 2)], 2_100_000)
    assert first == pytest.approx(second, abs=1)
    assert alone - first == pytest.approx(200_000, rel=0.1)


def test_busy_and_idle_are_the_wall_time() -> None:
    rng, now_ns = random.Random(2), 12_345
    busy_meter = BusyMeter(now_ns)
    for _ in range(1000):
        now_ns += rng.randrange(10**7)
        if rng.random() < 0.5:
            busy_meter.busy_until(now_ns)
        else:
            busy_meter.idle_until(now_ns)
    assert busy_meter.busy_ns + busy_meter.idle_ns == now_ns - 12_345


def test_bytes_read_by_all_rows_have_a_rising_cost() -> None:
    rng, cost = random.Random(4), StepCostModel()
    kv = 8192

    def takes(step: list[Caused]) -> float:
        total = sum(one.kv_bytes for one in step)
        return 2e-4 + 2e-11 * total + 1e-18 * total**2

    for _ in range(1000):
        contexts = [rng.randrange(1, 3000) for _ in range(rng.randrange(1, 9))]
        step = [Caused(1, float(context), context * kv) for context in contexts]
        cost.observe(step, takes(step) * rng.uniform(0.98, 1.02))
    step = [Caused(1, 500.0, 500 * kv), Caused(1, 2500.0, 2500 * kv)]
    assert cost.expected(step) == pytest.approx(takes(step), rel=0.05)
    alone = [cost.expected([one]) for one in step]
    assert cost.expected(step) > sum(alone) - cost.cost.step
    first, second = cost.split(step, round(1e9 * takes(step)))
    fair = (takes(step) + takes(step[:1]) - takes(step[1:])) / 2
    assert first == pytest.approx(1e9 * fair, rel=0.1) and first + second == round(1e9 * takes(step))
    # The price of a byte is that beside what there was lately.
    byte = cost.cost.mixed / kv + cost.cost.kv_byte
    assert 2e-11 + 1e-18 * 1e7 < byte < 2e-11 + 1e-18 * 8e7
