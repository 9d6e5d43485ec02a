"""Dollars from device-seconds. A device's price is split over its workers in shares that add up to one, so that

    sum of request costs + idle  =  price * time        for every device

with idle time as its own line. Savings and the counterfactual are estimates, and carry the name of their method.
"""

from typing import NamedTuple, Protocol

import msgspec

from backends.wire import Finished
from gateway.policy.schema import Policy, TokenPrices
from gateway.policy.worker_rates import WorkerRates

SAVED_METHOD = "reprefill/v1"
"""Method of savings: cached tokens times the worker's present rate per uncached token."""
COUNTERFACTUAL_METHOD = "same-cache/v1"
"""Method of the counterfactual: the same tokens, equally cached, on the top tier's worker at its present rates."""


def usd(device_s: float, usd_per_s: float) -> float:
    return device_s * usd_per_s


def worker_usd_per_s(policy: Policy) -> dict[str, float]:
    """Return the price of a second by worker: its share of the device's price. Workers without a share split the rest
    equally."""
    prices: dict[str, float] = {}
    for device_name, device in policy.devices.items():
        workers = {name: worker for name, worker in policy.workers.items() if worker.device == device_name}
        shares = {name: worker.share for name, worker in workers.items() if worker.share is not None}
        left = 1.0 - sum(shares.values())
        for name in workers:
            share = shares.get(name, left / max(1, len(workers) - len(shares)))
            prices[name] = share * device.usd_per_hour / 3600.0
    return prices


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of one attempt, with its cache savings and its cost on the large tier. Device-seconds and dollars."""

    device_s: float
    usd: float
    saved_by_cache_usd: float
    all_large_usd: float
    saved_method: str = SAVED_METHOD
    all_large_method: str = COUNTERFACTUAL_METHOD


class Tariff(Protocol):
    """Price in dollars of a finished request on one server."""

    def paid(self, finished: Finished) -> float: ...

    def saved(self, finished: Finished) -> float:
        """Return the dollars saved by cached tokens."""
        ...

    def expected(self, finished: Finished) -> float:
        """Return the dollars of the same tokens, equally cached, on this server."""
        ...


class ByTime(NamedTuple):
    """Tariff of a worker: its rates and its price of a busy second."""

    rates: WorkerRates
    usd_per_s: float

    def paid(self, finished: Finished) -> float:
        return usd(finished.device_s, self.usd_per_s)

    def saved(self, finished: Finished) -> float:
        return usd(finished.num_cached_tokens * self.rates.prefill_s_per_token, self.usd_per_s)

    def expected(self, finished: Finished) -> float:
        return usd(expected_device_s(finished, self.rates), self.usd_per_s)


class ByToken(NamedTuple):
    """Tariff of an upstream. A request that did not begin has no tokens and costs nothing."""

    prices: TokenPrices

    def paid(self, finished: Finished) -> float:
        uncached = finished.num_prompt_tokens - finished.num_cached_tokens
        return self.prices.usd(uncached, finished.num_cached_tokens, finished.num_output_tokens)

    def saved(self, finished: Finished) -> float:
        cached = finished.num_cached_tokens
        return self.prices.usd(cached, 0, 0) - self.prices.usd(0, cached, 0)

    def expected(self, finished: Finished) -> float:
        return self.paid(finished) if finished.num_output_tokens else 0.0


def charge(finished: Finished, tariff: Tariff, *, large: Tariff | None, on_large: bool) -> Charge:
    """Return the cost of a finished request under a tariff.

    `large` is the top tier's tariff, None when there is none. On the large tier itself the counterfactual is the price paid.
    """
    paid, saved = tariff.paid(finished), tariff.saved(finished)
    instead = paid if on_large or large is None else large.expected(finished)
    return Charge(device_s=finished.device_s, usd=paid, saved_by_cache_usd=saved, all_large_usd=instead)


def expected_device_s(finished: Finished, rates: WorkerRates) -> float:
    """Return device-seconds of the same tokens, equally cached, at other rates; 0 for a request without output."""
    if finished.num_output_tokens == 0:
        return 0.0
    uncached = max(1, finished.num_prompt_tokens - finished.num_cached_tokens)
    decoded = finished.num_output_tokens - 1
    return rates.overhead_s + uncached * rates.prefill_s_per_token + decoded * rates.decode_device_s_per_token


class DeviceTime(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's wall time in parts, as its `Load` reports them."""

    busy_s: float
    idle_s: float
    attributed_s: float

    def split_usd(self, usd_per_s: float) -> tuple[float, float, float]:
        """Return dollars (charged to requests, busy but unattributed, idle). They add up to the price of the time."""
        unattributed = self.busy_s - self.attributed_s
        return self.attributed_s * usd_per_s, unattributed * usd_per_s, self.idle_s * usd_per_s
