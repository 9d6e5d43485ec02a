"""Whose rows of the ledger are looked at, and of what time; every report starts from it, so that no tenant sees another's."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.ledger.store import Values

Read = Callable[[str, Values], list[dict[str, Any]]]

MAX_POINTS = 100
_STEPS_S = (10, 60, 300, 900, 3_600, 14_400, 86_400, 604_800)


class Scope(NamedTuple):
    """`tenant` None is everybody. Unix times: `since` <= at < `until`."""

    tenant: str | None
    since: float
    until: float

    def where(self) -> tuple[str, tuple[str | float, ...]]:
        """A condition on `requests`, and its values."""
        if self.tenant is None:
            return "at >= ? AND at < ?", (self.since, self.until)
        return "at >= ? AND at < ? AND tenant = ?", (self.since, self.until, self.tenant)

    def narrowed(self, read: Read) -> "Scope":
        """To the time from the first request in it: a young ledger gets a series of more than one step."""
        where, values = self.where()
        (row,) = read(f"SELECT min(at) AS first FROM requests WHERE {where}", values)
        return self if row["first"] is None else self._replace(since=row["first"])

    @property
    def step_s(self) -> int:
        """Of a series over this time: round, and so that there are at most MAX_POINTS."""
        return next((step for step in _STEPS_S if (self.until - self.since) / step <= MAX_POINTS), _STEPS_S[-1])
