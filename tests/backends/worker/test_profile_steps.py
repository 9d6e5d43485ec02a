"""A worker knows what its steps cost before it serves anybody, and has left nothing behind."""

import pytest

from backends.engine.request_limits import RequestLimits
from backends.engine.step_cost_model import StepCostModel
from backends.worker.profile_steps import MAX_S, profile_steps
from tests.backends.fakes import FakeRunner, LetterDecoder, Ticks, limits


@pytest.mark.parametrize(
    "of",
    [limits(), limits(num_pages=400, max_context=1500), limits(num_pages=3), limits(max_sequences=1), limits(max_context=4)],
)
def test_profile_learns_from_its_own_steps(of: RequestLimits) -> None:
    cost = StepCostModel()
    assert profile_steps(cost, FakeRunner(of), LetterDecoder(), of, clock_ns=Ticks()) > 0
    step_s, token_s, *_ = cost.coefficients
    assert step_s + token_s > 0


def test_profile_of_a_slow_worker_is_bounded_in_time() -> None:
    of, clock = limits(), Ticks()

    def slow() -> int:
        clock.now_ns += 50_000_000
        return clock()

    began, cost = clock.now_ns, StepCostModel()
    profile_steps(cost, FakeRunner(of), LetterDecoder(), of, clock_ns=slow)
    assert (clock.now_ns - began) / 1e9 < 2 * MAX_S
    step_s, token_s, *_ = cost.coefficients
    assert step_s + token_s > 0
