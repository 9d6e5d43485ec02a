import random

import pytest

from backends.wire import Finished, Load
from gateway.policy.worker_rates import WorkerRates
from gateway.scheduling.latency_model import COLD, LatencyPredictor, OutputLengths, cold_rates


def finished(
    request: int = 1, *, prompt: int, cached: int = 0, output: int, rates: WorkerRates, noise: float = 1.0
) -> Finished:
    prefill = (rates.overhead_s + (prompt - cached) * rates.prefill_s_per_token) * noise
    decode = (output - 1) * rates.decode_device_s_per_token * noise
    return Finished(
        request=request,
        reason="stop",
        num_prompt_tokens=prompt,
        num_cached_tokens=cached,
        num_output_tokens=output,
        prefill_s=prefill,
        decode_s=(output - 1) * rates.tpot_s * noise,
        device_s=prefill + decode,
        prefill_device_s=prefill,
    )


def load(*, running: int = 0, waiting: int = 0, step_cost: tuple[float, float, float, float] = (0, 0, 0, 0)) -> Load:
    return Load(
        running=running,
        waiting=waiting,
        free_pages=10,
        cached_pages=0,
        num_pages=10,
        credit_sequences=4,
        credit_tokens=1000,
        busy_s=1.0,
        idle_s=1.0,
        attributed_s=1.0,
        step_cost=step_cost,
    )


@pytest.mark.parametrize("true", [WorkerRates(0.001, 2e-5, 4e-4, 3e-4), WorkerRates(0.02, 1e-3, 0.03, 0.01)])
def test_rates_are_learned_from_what_finished(true: WorkerRates) -> None:
    rng, predictor = random.Random(1), LatencyPredictor()
    for _ in range(300):
        prompt = rng.randrange(20, 3000)
        cached = rng.choice([0, prompt // 2])
        one = finished(prompt=prompt, cached=cached, output=rng.randrange(2, 60), rates=true, noise=rng.uniform(0.9, 1.1))
        predictor.observe_finished(one)
    learned = predictor.rates
    assert learned.prefill_s_per_token == pytest.approx(true.prefill_s_per_token, rel=0.1)
    assert learned.tpot_s == pytest.approx(true.tpot_s, rel=0.1)
    assert learned.decode_device_s_per_token == pytest.approx(true.decode_device_s_per_token, rel=0.1)
    expected = true.overhead_s + 500 * true.prefill_s_per_token
    assert learned.overhead_s + 500 * learned.prefill_s_per_token == pytest.approx(expected, rel=0.1)


def test_rates_follow_when_the_worker_changes() -> None:
    rng, predictor = random.Random(2), LatencyPredictor()
    for true in (WorkerRates(0.001, 1e-5, 1e-3, 1e-3), WorkerRates(0.004, 4e-5, 3e-3, 3e-3)):
        for _ in range(400):
            predictor.observe_finished(finished(prompt=rng.randrange(20, 3000), output=20, rates=true))
    assert predictor.rates.prefill_s_per_token == pytest.approx(4e-5, rel=0.1)
    assert predictor.rates.tpot_s == pytest.approx(3e-3, rel=0.1)


def test_odd_reports_leave_rates_positive_and_finite() -> None:
    rng, predictor = random.Random(3), LatencyPredictor()
    for _ in range(5000):
        one = finished(prompt=100, output=1, rates=COLD, noise=rng.choice([0.0, 1.0, 1e3]))
        predictor.observe_finished(one)
        assert all(0 <= rate < 1e6 for rate in predictor.rates)
    predictor.observe_finished(Finished(request=1, reason="error"))


def test_the_step_model_of_the_first_load_is_the_cold_start() -> None:
    predictor = LatencyPredictor()
    predictor.observe_load(load(step_cost=(0.003, 2e-5, 0, 0)), now=0.0)
    assert predictor.rates.overhead_s == 0.003
    assert predictor.rates.prefill_s_per_token == 2e-5
    given = LatencyPredictor(cold_rates(10_000_000))
    given.observe_load(load(), now=0.0)
    assert given.rates == cold_rates(10_000_000), "a worker that has run nothing says nothing"
    given.observe_load(load(step_cost=(0.003, 2e-5, 0, 0)), now=0.0)
    assert given.rates == predictor.rates
    given.submitted(1, 100)
    given.observe_finished(finished(1, prompt=100, output=5, rates=cold_rates(10_000_000)))
    learned = given.rates
    given.observe_load(load(step_cost=(0.03, 2e-4, 0, 0)), now=0.0)
    assert given.rates == learned, "what requests took says more"


def test_a_larger_model_is_expected_to_be_slower() -> None:
    assert all(small < large for small, large in zip(cold_rates(2_000_000), cold_rates(20_000_000), strict=True))


def test_wait_is_the_time_of_the_prefills_ahead() -> None:
    predictor = LatencyPredictor(WorkerRates(0.0, 1e-3, 0.01, 0.01))
    assert predictor.wait_s(max_sequences=4, queued_tokens=0, now=0) == 0
    predictor.submitted(1, 100)
    predictor.submitted(2, 50)
    assert predictor.wait_s(max_sequences=4, queued_tokens=30, now=0) == pytest.approx(0.18)
    predictor.first_token(1)
    assert predictor.wait_s(max_sequences=4, queued_tokens=0, now=0) == pytest.approx(0.05)
    predictor.lost()
    assert predictor.running == 0


def test_full_worker_adds_a_wait_and_a_stale_load_is_ignored() -> None:
    predictor = LatencyPredictor()
    for _ in range(100):
        predictor.observe_finished(finished(prompt=100, output=100, rates=WorkerRates(0.0, 1e-5, 0.01, 0.01)))
    predictor.observe_load(load(running=4), now=100.0)
    assert predictor.wait_s(max_sequences=4, queued_tokens=0, now=101.0) == pytest.approx(1.0 / 4, rel=0.1)
    assert predictor.wait_s(max_sequences=4, queued_tokens=0, now=200.0) == 0


def test_a_view_carries_the_rates() -> None:
    predictor = LatencyPredictor()
    predictor.submitted(7, 40)
    view = predictor.view(
        worker="w",
        model="m",
        tier="t",
        healthy=True,
        max_context=10,
        usd_per_s=1.0,
        max_sequences=2,
        now=0.0,
        queued_tokens=2,
    )
    assert view.tpot_s == COLD.tpot_s


def test_output_lengths_are_learned_by_kind_and_never_exceed_the_limit() -> None:
    lengths = OutputLengths(first_guess=32, max_kinds=2)
    assert lengths.expect("a", 10) == 10
    for _ in range(200):
        lengths.observe("a", 5)
        lengths.observe("b", 50)
        lengths.observe("c", 1000)
    assert lengths.expect("a", 100) == pytest.approx(5, abs=0.5)
    assert lengths.expect("b", 100) == pytest.approx(50, abs=1)
    assert lengths.expect("c", 100) == 32


def ended(request: int, *, queue_s: float, prefill_s: float = 0.012) -> Finished:
    return Finished(
        request=request,
        reason="stop",
        num_prompt_tokens=100,
        num_output_tokens=11,
        queue_s=queue_s,
        prefill_s=prefill_s,
        decode_s=0.05,
        device_s=0.062,
        prefill_device_s=0.012,
    )


def test_errors_compare_with_the_prediction_at_submission() -> None:
    predictor = LatencyPredictor(WorkerRates(0.002, 1e-4, 0.005, 0.005))
    for request in range(400):
        predictor.submitted(request, 100, wait_s=0.1)
        predictor.observe_finished(ended(request, queue_s=0.1 + 0.3 * (request % 2)))
    wait, ttft = predictor.errors["wait"], predictor.errors["ttft"]
    assert abs(wait.bias_s - 0.15) < 0.01 and abs(wait.deviation_s - 0.15) < 0.01
    assert abs(predictor.errors["prefill"].bias_s) < 1e-3 and abs(predictor.errors["decode"].bias_s) < 1e-3
    assert abs(ttft.bias_s - 0.15) < 0.01 and abs(ttft.deviation_s - 0.15) < 0.01


def test_slow_outlier_is_forgotten() -> None:
    predictor = LatencyPredictor(WorkerRates(0.002, 1e-4, 0.005, 0.005))
    predictor.submitted(0, 100)
    predictor.observe_finished(ended(0, queue_s=30.0))
    once = predictor.errors["ttft"].bias_s
    for request in range(1, 400):
        predictor.submitted(request, 100, wait_s=0.5)
        predictor.observe_finished(ended(request, queue_s=0.0))
    assert once > 10.0
    assert predictor.errors["ttft"].bias_s < 0.0


def test_end_of_an_unknown_request_teaches_nothing() -> None:
    predictor = LatencyPredictor()
    predictor.submitted(1, 100)
    predictor.lost()
    predictor.observe_finished(ended(1, queue_s=9.0))
    predictor.submitted(2, 100)
    predictor.observe_finished(Finished(request=2, reason="abort", device_s=1.0))
    assert predictor.errors["ttft"].bias_s == predictor.errors["ttft"].deviation_s == 0.0
