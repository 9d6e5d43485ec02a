import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire import Finished
from gateway.metering.cost import ByTime, DeviceTime, charge, worker_usd_per_s
from gateway.policy.schema import Policy
from gateway.policy.worker_rates import WorkerRates

SLOW, FAST = WorkerRates(0.01, 1e-3, 0.02, 0.02), WorkerRates(0.001, 1e-4, 0.002, 0.002)
DONE = Finished(
    request=1,
    reason="stop",
    num_prompt_tokens=100,
    num_cached_tokens=60,
    num_output_tokens=11,
    device_s=0.5,
    prefill_device_s=0.1,
)


def policy(**shares: float | None) -> Policy:
    workers = {name: {"model": "m", "device": "gpu", "share": share} for name, share in shares.items()}
    raw = {
        "version": 1,
        "devices": {"gpu": {"usd_per_hour": 3.6}},
        "tiers": ["t"],
        "models": {"m": {"path": "m", "tier": "t"}},
        "workers": workers,
        "routes": [{"name": "r", "candidates": ["t"]}],
    }
    return msgspec.convert(raw, Policy)


def test_device_price_is_split_equally_by_default() -> None:
    assert worker_usd_per_s(policy(a=None)) == pytest.approx({"a": 0.001})
    assert worker_usd_per_s(policy(a=None, b=None)) == pytest.approx({"a": 0.0005, "b": 0.0005})
    assert worker_usd_per_s(policy(a=0.8, b=None, c=None)) == pytest.approx({"a": 0.0008, "b": 0.0001, "c": 0.0001})


@given(st.lists(st.none() | st.floats(0, 0.2), min_size=1, max_size=4))
def test_the_parts_of_a_device_are_its_price(shares: list[float | None]) -> None:
    prices = worker_usd_per_s(policy(**{f"w{i}": share for i, share in enumerate([None, *shares])}))
    assert sum(prices.values()) == pytest.approx(0.001)


def test_a_charge_is_its_device_seconds() -> None:
    paid = charge(DONE, ByTime(FAST, 2.0), large=ByTime(SLOW, 4.0), on_large=False)
    assert paid.usd == 1.0
    assert paid.saved_by_cache_usd == pytest.approx(60 * 1e-4 * 2.0)
    assert paid.all_large_usd == pytest.approx((0.01 + 40 * 1e-3 + 10 * 0.02) * 4.0)


def test_on_the_large_tier_the_counterfactual_is_what_was_paid() -> None:
    paid = charge(DONE, ByTime(SLOW, 2.0), large=ByTime(SLOW, 4.0), on_large=True)
    assert paid.all_large_usd == paid.usd
    alone = charge(DONE, ByTime(SLOW, 2.0), large=None, on_large=False)
    assert alone.all_large_usd == alone.usd


def test_request_without_device_time_costs_nothing() -> None:
    refused = Finished(request=1, reason="refused", num_prompt_tokens=100)
    paid = charge(refused, ByTime(FAST, 2.0), large=ByTime(SLOW, 4.0), on_large=False)
    assert (paid.usd, paid.saved_by_cache_usd, paid.all_large_usd) == (0.0, 0.0, 0.0)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 1))
def test_requests_and_idle_add_up_to_the_price_of_the_time(busy: float, idle: float, part: float, price: float) -> None:
    time = DeviceTime(busy_s=busy, idle_s=idle, attributed_s=busy * part)
    assert sum(time.split_usd(price)) == pytest.approx(price * (busy + idle))
