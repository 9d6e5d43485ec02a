"""Reserves seats on each worker so that low-traffic tenants do not wait behind a heavy one. Pure: time is an argument."""

from collections.abc import Callable, Mapping

KEPT_SHARE = 1 / 8
"""Share of a worker's seats that is reserved. A worker with few seats has none. Measured in docs/log.md (Order between
tenants under a flood)."""
REMEMBERED_S = 60.0
"""Seconds after a request during which its tenant counts as active."""
LEVELS = 8
"""Number of levels of how much of its share a tenant uses. The last level uses all of it. Measured in docs/log.md (Order
between tenants under a flood)."""


class TenantShares:
    """Shares of a worker's seats by tenant weight. Bounded by the number of tenants in the policy."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._came: dict[str, float] = {}

    def record_arrival(self, tenant: str, now: float) -> None:
        """Record that a tenant sent a request."""
        self._came[tenant] = now

    def is_at_share(self, tenant: str, taken: Mapping[str, int], total: int, now: float) -> bool:
        """Return whether a tenant uses its whole share of a worker's seats beside the other active tenants. False for the
        only active tenant. `taken` is seats by tenant."""
        return self.level(tenant, taken, total, now) == LEVELS - 1

    def level(self, tenant: str, taken: Mapping[str, int], total: int, now: float) -> int:
        """Return the level of a tenant, from 0 to LEVELS - 1. 0 also for the only active tenant."""
        others = sum(self._weight(other) for other, at in self._came.items() if other != tenant and now - at <= REMEMBERED_S)
        if not others:
            return 0
        mine = self._weight(tenant)
        share = total * mine / (mine + others)
        return min(LEVELS - 1, int((LEVELS - 1) * taken.get(tenant, 0) / share))


def is_kept(free: int, total: int) -> bool:
    """Return whether the next free seat is reserved for other tenants."""
    return free <= total * KEPT_SHARE
