"""Tenant and time range of a report. Every report filters by it, so that no tenant sees another's rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.ledger.store import Values

Read = Callable[[str, Values], list[dict[str, Any]]]

MAX_POINTS = 100
_STEPS_S = (10, 60, 300, 900, 3_600, 14_400, 86_400, 604_800)


class Scope(NamedTuple):
    """Filter of a report. `tenant` None means all tenants. Unix times: `since` <= at < `until`."""

    tenant: str | None
    since: float
    until: float

    def where(self) -> tuple[str, tuple[str | float, ...]]:
        """Return a WHERE condition on `requests` and its values."""
        if self.tenant is None:
            return "at >= ? AND at < ?", (self.since, self.until)
        return "at >= ? AND at < ? AND tenant = ?", (self.since, self.until, self.tenant)

    def narrowed(self, read: Read) -> "Scope":
        """Return the scope from its first request on, so that a young ledger's series has more than one step."""
        where, values = self.where()
        (row,) = read(f"SELECT min(at) AS first FROM requests WHERE {where}", values)
        return self if row["first"] is None else self._replace(since=row["first"])

    @property
    def step_s(self) -> int:
        """Return the step of a series in seconds: a round number with at most MAX_POINTS steps in the scope."""
        return next((step for step in _STEPS_S if (self.until - self.since) / step <= MAX_POINTS), _STEPS_S[-1])
