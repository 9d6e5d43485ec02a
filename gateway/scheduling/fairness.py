"""Reserves seats on each worker, so that a tenant with little traffic and requests with a TTFT objective do not wait behind
the rest. Pure: time is an argument."""

import math
from collections.abc import Callable, Mapping

RESERVED_SHARE = 1 / 8
"""Share of a worker's seats that is reserved. A worker with few seats has none. Measured in docs/log.md (Order between
tenants under a flood)."""


class TenantShares:
    """Shares of a worker's seats by tenant weight. Bounded by the number of tenants in the policy.

    A tenant is active for `idle_s` seconds after a request; it may be set at any time.
    """

    def __init__(self, weight: Callable[[str], float], idle_s: float) -> None:
        self._weight, self.idle_s = weight, idle_s
        self._arrived: dict[str, float] = {}
        self._others_at = -math.inf

    def record_arrival(self, tenant: str, now: float, *, batch: bool = False) -> None:
        self._arrived[tenant] = now
        if not batch:
            self._others_at = now

    def is_at_share(self, tenant: str, taken: Mapping[str, int], num_seats: int, now: float) -> bool:
        """Return whether a tenant uses its whole share of a worker's seats beside the other active tenants. False for the
        only active tenant. `taken` is seats by tenant."""
        others = sum(self._weight(other) for other, at in self._arrived.items() if other != tenant and now - at <= self.idle_s)
        if not others:
            return False
        mine = self._weight(tenant)
        return taken.get(tenant, 0) >= num_seats * mine / (mine + others)

    def is_batch_alone(self, now: float) -> bool:
        """Return whether only batch requests arrived lately, so that no seat is reserved from them."""
        return now - self._others_at > self.idle_s


def is_reserved(num_free: int, num_seats: int) -> bool:
    """Return whether the next free seat is one of the reserved ones."""
    return num_free <= num_seats * RESERVED_SHARE
