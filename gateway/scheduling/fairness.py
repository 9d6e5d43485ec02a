"""Seats of a worker that a tenant leaves to the others, so that who asks seldom finds one free. Pure: time is an argument."""

from collections.abc import Callable, Mapping

KEPT_SHARE = 1 / 8
"""Of a worker's seats; of few seats none."""
REMEMBERED_S = 60.0
LEVELS = 8
"""How finely tenants are told apart by how much of their share they have; the last level has all of it."""


class TenantShares:
    """`weight` is a tenant's. There are as many tenants as the policy has."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._came: dict[str, float] = {}

    def record_arrival(self, tenant: str, now: float) -> None:
        """It asked for something."""
        self._came[tenant] = now

    def is_at_share(self, tenant: str, taken: Mapping[str, int], total: int, now: float) -> bool:
        """Whether a tenant has as many of a worker's seats as are due to it beside the others that came lately. Alone it never
        has. `taken` is by tenant."""
        return self.level(tenant, taken, total, now) == LEVELS - 1

    def level(self, tenant: str, taken: Mapping[str, int], total: int, now: float) -> int:
        """From 0, where it has none of what is due to it or is alone, to LEVELS - 1."""
        others = sum(self._weight(other) for other, at in self._came.items() if other != tenant and now - at <= REMEMBERED_S)
        if not others:
            return 0
        mine = self._weight(tenant)
        share = total * mine / (mine + others)
        return min(LEVELS - 1, int((LEVELS - 1) * taken.get(tenant, 0) / share))


def is_kept(free: int, total: int) -> bool:
    """Whether the next seat is one of those that are left to others."""
    return free <= total * KEPT_SHARE
