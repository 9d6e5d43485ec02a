"""Seats of a worker that a tenant leaves to the others, so that who asks seldom finds one free. Pure: time is an argument."""

from collections.abc import Callable, Mapping

KEPT_SHARE = 1 / 8
"""Of a worker's seats; of few seats none."""
REMEMBERED_S = 60.0


class Seats:
    """`weight` is a tenant's. There are as many tenants as the policy has."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._came: dict[str, float] = {}

    def came(self, tenant: str, now: float) -> None:
        """It asked for something."""
        self._came[tenant] = now

    def has_its_share(self, tenant: str, taken: Mapping[str, int], total: int, now: float) -> bool:
        """Whether a tenant has as many of a worker's seats as are due to it beside the others that came lately. Alone it never
        has. `taken` is by tenant."""
        others = sum(self._weight(other) for other, at in self._came.items() if other != tenant and now - at <= REMEMBERED_S)
        if not others:
            return False
        mine = self._weight(tenant)
        return taken.get(tenant, 0) >= total * mine / (mine + others)


def is_kept(free: int, total: int) -> bool:
    """Whether the next seat is one of those that are left to others."""
    return free <= total * KEPT_SHARE
