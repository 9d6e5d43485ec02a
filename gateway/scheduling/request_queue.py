"""Requests that wait for a worker, and which goes next. Pure and bounded.

overdue   a cold one that has waited too long, the first come first, while a bounded share of all prefill work lasts
due       one whose promise is half used up and can still be kept: the tenant with the least work, then who is due first
band      interactive > agent turn and new run > batch
in a band the tenant with the least uncached work per weight; of its requests
  resident  first, the run with the least attained service
  cold      then, in order of arrival plus half of the time that their runs have been served

Each tenant's requests of a band are kept in order; the order of tenants, which every request changes, is made at the taking.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from itertools import chain

import msgspec

COLD_AFTER_S = 600.0
"""A cold request that has waited so long may go first, see docs/runs.md; aging of every request collapses throughput."""
COLD_SHARE = 0.25
SERVED_WEIGHT = 0.5
"""By so much of its attained service a cold request stands back: one that was served for a minute lets those by that come in
the next half. From 0.25 to 1 it makes no difference to throughput, see docs/runs.md."""
_COLD_SAVED_S = 60.0
"""The cold budget saves up at most what it earns in this time; one request may overdraw it."""


class Band(IntEnum):
    """Lower runs first; a new run waits in one line with turns of others, and is the first of them to be shed."""

    INTERACTIVE = 0
    AGENT_TURN = 1
    NEW_RUN = 2
    BATCH = 3

    @property
    def line(self) -> "Band":
        return Band.AGENT_TURN if self is Band.NEW_RUN else self


class QueuedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request in the queue. `attained_s` is its run's work so far, in seconds of a worker; `deadline` is when waiting is
    pointless."""

    request: int
    tenant: str
    run: str
    band: Band
    arrival: float
    deadline: float
    uncached_tokens: int
    resident: bool = False
    attained_s: float = 0.0
    num_bytes: int = 0
    admitted_run: bool = False
    """It continues a run, and does not give way."""
    due: float = math.inf
    slo_missed_at: float = math.inf
    """From `due` on it goes before what is not, until `broken`, when its promise is."""


_Place = tuple[bool, float, float, int]
"""Within its tenant and band."""


def _place(item: QueuedRequest) -> _Place:
    first = item.attained_s if item.resident else item.arrival + SERVED_WEIGHT * item.attained_s
    return (not item.resident, first, item.arrival, item.request)


class RequestQueue:
    """At most `max_waiting` requests, `max_tokens` of them uncached and `max_bytes`; one alone may be larger.

    `weights` of tenants default to one. `cold_share` is of the prefill rate."""

    def __init__(
        self,
        max_waiting: int,
        weights: Mapping[str, float] | None = None,
        *,
        cold_after_s: float = COLD_AFTER_S,
        cold_share: float = COLD_SHARE,
        max_tokens: float = math.inf,
        max_bytes: float = math.inf,
    ) -> None:
        self._max_waiting, self._max_tokens, self._max_bytes = max_waiting, max_tokens, max_bytes
        self._cold_after_s, self._cold_share = cold_after_s, cold_share
        self._cold_budget, self._cold_at = 0.0, 0.0
        self._weights = weights or {}
        self._waiting: dict[int, QueuedRequest] = {}
        self._work: dict[str, float] = {}
        self._per_tenant: dict[str, int] = {}
        self._lines: dict[tuple[Band, str], list[_Place]] = {}
        self._cold: list[tuple[float, int]] = []
        """Those that are not resident, by arrival."""
        self._with_slo: dict[int, QueuedRequest] = {}
        """Those that are due at some time."""
        self._uncached = self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Shares from now on; work that was charged stays charged."""
        self._weights = weights

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    @property
    def uncached_tokens(self) -> int:
        """Of all that wait."""
        return self._uncached

    def push(self, item: QueuedRequest) -> bool:
        """False when the queue is full. A request that is already there is replaced and keeps its arrival."""
        old = self._waiting.get(item.request)
        if old is None and self._has_no_space(item):
            return False
        if old is not None:
            self._take(old)
            item = msgspec.structs.replace(item, arrival=old.arrival)
        if item.tenant not in self._per_tenant:  # whoever was away has saved up nothing
            floor = min((self._work[tenant] for tenant in self._per_tenant), default=0.0)
            self._work = {tenant: self._work[tenant] for tenant in self._per_tenant} | {
                item.tenant: max(self._work.get(item.tenant, 0.0), floor)
            }
        self._per_tenant[item.tenant] = self._per_tenant.get(item.tenant, 0) + 1
        self._waiting[item.request] = item
        self._line_up(item)
        self._uncached += item.uncached_tokens
        self._bytes += item.num_bytes
        return True

    def evict_for(self, newcomer: QueuedRequest) -> QueuedRequest | None:
        """Takes out the last that came of the lowest band, for a turn of a run that was admitted; for anything else only one of
        the tenant with most in the queue for its weight, where that is not the newcomer's own."""
        others = (item for item in self._waiting.values() if not item.admitted_run)
        if not newcomer.admitted_run:
            heaviest = self._heavier(newcomer.tenant)
            if heaviest is None:
                return None
            others = (item for item in others if item.tenant == heaviest)
        last = max(others, key=lambda item: (item.band, item.arrival, item.request), default=None)
        if last is not None:
            self._take(last)
        return last

    def is_full_for(self, tenant: str) -> bool:
        """As many wait as may, and for another one of the tenant nobody would give way but to a turn of an admitted run."""
        return 0 < self._max_waiting <= len(self._waiting) and self._heavier(tenant) is None

    def _heavier(self, tenant: str) -> str | None:
        """Who has most in the queue for its weight, if that is more than the tenant would have with one more."""
        heaviest = max(self._per_tenant, key=self._largest_tenant, default=tenant)
        mine = (self._per_tenant.get(tenant, 0) + 1) / self.weight(tenant)
        return heaviest if self._largest_tenant(heaviest) > mine else None

    def _largest_tenant(self, tenant: str) -> float:
        return self._per_tenant.get(tenant, 0) / self.weight(tenant)

    def _has_no_space(self, item: QueuedRequest) -> bool:
        if not self._waiting:
            return self._max_waiting < 1
        too_many = len(self._waiting) >= self._max_waiting
        too_long = self._uncached + item.uncached_tokens > self._max_tokens
        return too_many or too_long or self._bytes + item.num_bytes > self._max_bytes

    def pop(
        self,
        ready: Callable[[QueuedRequest], bool] = lambda _: True,
        *,
        now: float = 0.0,
        prefill_rate: float = 0.0,
        closed: Callable[[str, Band], bool] = lambda tenant, band: False,
    ) -> QueuedRequest | None:
        """The first in order for which `ready` holds, charged to its tenant; None when there is no such one. Of a tenant's band
        that is `closed` no more is looked at.

        `prefill_rate` is in tokens a second, of all workers together.
        """
        self._earn(now, prefill_rate)
        for item in self._overdue(now):
            if ready(item):
                self._cold_budget -= item.uncached_tokens
                return self._charge(item)
        for item in chain(self._due(now), self._in_order(closed)):
            if ready(item):
                return self._charge(item)
        return None

    def _earn(self, now: float, prefill_rate: float) -> None:
        rate = self._cold_share * prefill_rate
        self._cold_budget = min(self._cold_budget + rate * max(0.0, now - self._cold_at), rate * _COLD_SAVED_S)
        self._cold_at = now

    def _overdue(self, now: float) -> list[QueuedRequest]:
        if self._cold_budget <= 0 or not self._cold or now - self._cold[0][0] < self._cold_after_s:
            return []
        return [self._waiting[request] for arrival, request in self._cold if now - arrival >= self._cold_after_s]

    def _due(self, now: float) -> list[QueuedRequest]:
        due = (one for one in self._with_slo.values() if one.due <= now < one.slo_missed_at)
        return sorted(due, key=lambda one: (self._work[one.tenant], one.due, one.request))

    def _in_order(self, closed: Callable[[str, Band], bool]) -> Iterator[QueuedRequest]:
        """Lazily: mostly the first is taken, and then no more is asked for."""
        lines = sorted((band, self._work[tenant], tenant, line) for (band, tenant), line in self._lines.items())
        for band, _, tenant, line in lines:
            for place in line:
                if closed(tenant, band):
                    break
                yield self._waiting[place[-1]]

    def _line_up(self, item: QueuedRequest) -> None:
        insort(self._lines.setdefault((item.band.line, item.tenant), []), _place(item))
        if not item.resident:
            insort(self._cold, (item.arrival, item.request))
        if item.due < math.inf:
            self._with_slo[item.request] = item

    def _step_out(self, item: QueuedRequest) -> None:
        key = item.band.line, item.tenant
        line = self._lines[key]
        del line[bisect_left(line, _place(item))]
        if not line:
            del self._lines[key]
        if not item.resident:
            del self._cold[bisect_left(self._cold, (item.arrival, item.request))]
        self._with_slo.pop(item.request, None)

    def _put(self, item: QueuedRequest) -> None:
        """In the place of what waits under its number."""
        self._step_out(self._waiting[item.request])
        self._waiting[item.request] = item
        self._line_up(item)

    def _charge(self, item: QueuedRequest) -> QueuedRequest:
        self._work[item.tenant] += max(1, item.uncached_tokens) / self.weight(item.tenant)
        self._take(item)
        return item

    def requests(self) -> tuple[int, ...]:
        """In order of coming."""
        return tuple(self._waiting)

    def refresh(self, request: int, *, uncached_tokens: int, resident: bool) -> None:
        """What is resident of it has changed while it waited."""
        item = self._waiting.get(request)
        if item is not None and (item.uncached_tokens, item.resident) != (uncached_tokens, resident):
            self._uncached += uncached_tokens - item.uncached_tokens
            self._put(msgspec.structs.replace(item, uncached_tokens=uncached_tokens, resident=resident))

    def cancel(self, request: int) -> bool:
        """False when it does not wait (any more)."""
        item = self._waiting.get(request)
        if item is not None:
            self._take(item)
        return item is not None

    def expire(self, now: float) -> list[QueuedRequest]:
        """Takes out and returns those whose deadline has passed, the longest waiting first."""
        late = sorted((w for w in self._waiting.values() if w.deadline <= now), key=lambda w: (w.arrival, w.request))
        for item in late:
            self._take(item)
        return late

    def _take(self, item: QueuedRequest) -> None:
        self._step_out(item)
        del self._waiting[item.request]
        self._uncached -= item.uncached_tokens
        self._bytes -= item.num_bytes
        self._per_tenant[item.tenant] -= 1
        if not self._per_tenant[item.tenant]:
            del self._per_tenant[item.tenant]

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert len(self._waiting) <= self._max_waiting
        assert self._uncached == sum(item.uncached_tokens for item in self._waiting.values())
        assert self._bytes == sum(item.num_bytes for item in self._waiting.values())
        assert sum(self._per_tenant.values()) == len(self._waiting)
        assert self._per_tenant.keys() <= self._work.keys()
        lined_up = [(line, self._waiting[place[-1]]) for line, places in self._lines.items() for place in places]
        assert {item.request for _, item in lined_up} == self._waiting.keys() and len(lined_up) == len(self._waiting)
        assert all(line == (item.band.line, item.tenant) for line, item in lined_up)
        assert all(line == sorted(line) for line in self._lines.values())
        assert self._cold == sorted((item.arrival, item.request) for item in self._waiting.values() if not item.resident)
        assert self._with_slo == {item.request: item for item in self._waiting.values() if item.due < math.inf}
