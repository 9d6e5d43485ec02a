import random

import pytest

from gateway.scheduling.ttft_margin import FLOOR_S, SHARE, TtftMargin


def bound_s(ttft_margin: TtftMargin, predicted_s: float, now: float) -> float:
    return predicted_s + ttft_margin.margin(now) * (predicted_s + FLOOR_S)


def test_few_requests_exceed_the_bound_for_any_error_distribution() -> None:
    rng, ttft_margin = random.Random(3), TtftMargin()
    late, under_way = 0, list[tuple[float, float, float, float]]()
    for number in range(4000):
        predicted = rng.uniform(0.005, 0.5)
        came = predicted * rng.lognormvariate(0.5, 0.4)
        now = number / 50
        late += number >= 1000 and came > bound_s(ttft_margin, predicted, now)
        under_way.append((now + came, predicted, came, now))
        under_way.sort()
        while under_way[0][0] <= now:
            at, its, seen, since = under_way.pop(0)
            ttft_margin.observe(its, seen, at, predicted_at=since)
    assert late / 3000 == pytest.approx(1 - SHARE, abs=0.015)


def test_margin_is_zero_for_exact_predictions_and_decays_without_news() -> None:
    ttft_margin = TtftMargin()
    for number in range(300):
        ttft_margin.observe(0.1, 0.1, number / 50, predicted_at=number / 50)
    assert bound_s(ttft_margin, 0.1, 6.0) < 0.11
    for number in range(10):
        ttft_margin.observe(0.1, 5.0, 6.0 + number / 50, predicted_at=6.0 + number / 50)
    before = ttft_margin.margin(6.2)
    assert before > 1
    assert ttft_margin.margin(66.2) == pytest.approx(before / 2, rel=0.01)


def test_requests_late_from_one_standstill_count_a_few_times() -> None:
    ttft_margin = TtftMargin()
    for number in range(500):
        ttft_margin.observe(0.1, 5.0, 6.0 + number / 1000, predicted_at=1.0 + number / 1000)
    assert ttft_margin.margin(6.5) < 1.5
    for number in range(40):  # and what goes on to be late, each time anew
        ttft_margin.observe(0.1, 5.0, 12.0 + 5 * number, predicted_at=7.0 + 5 * number)
    assert ttft_margin.margin(210.0) > 3
