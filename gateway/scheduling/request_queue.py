"""Requests that wait for a worker, and their order. Pure and bounded.

overdue   a cold request that has waited too long, in order of arrival, within a bounded share of all prefill work
owed      batch requests for a worker that owes batch its share of the starts (batch_share.py)
band      interactive > agent turn and new run > batch
in a band the tenant with the least uncached work per weight; of its requests
  resident  first, the run with the least attained service
  cold      then, in order of arrival plus half of the attained service of their runs

The requests of each tenant, band and worker are kept sorted. Tenants are sorted in `pop`, as every request changes their
order.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import IntEnum
from heapq import merge
from typing import NamedTuple

import msgspec

COLD_AFTER_S = 600.0
"""Seconds after which a cold request may precede others, see docs/runs.md. Aging of every request collapses throughput.
Measured in docs/log.md (Order and retention of runs, in simulation)."""
COLD_SHARE = 0.25
"""Share of the prefill rate that overdue requests may use. Measured in docs/log.md (Order and retention of runs, in
simulation)."""
SERVED_WEIGHT = 0.5
"""Factor on a cold request's attained service that is added to its arrival. After a minute of service it yields to requests
that arrive up to half a minute later. Throughput is the same from 0.25 to 1, see docs/runs.md."""
_COLD_SAVED_S = 60.0
"""Seconds of income that the cold budget saves at most. One request may overdraw it."""


class Band(IntEnum):
    """Priority band. Lower ones run first. A new run shares a line with turns of others and is shed before them."""

    INTERACTIVE = 0
    AGENT_TURN = 1
    NEW_RUN = 2
    BATCH = 3

    @property
    def line(self) -> "Band":
        return Band.AGENT_TURN if self is Band.NEW_RUN else self


class Line(NamedTuple):
    """Requests that are alike to whatever decides whether they may start. `band` is `Band.line`."""

    band: Band
    tenant: str
    worker: str


class QueuedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request in the queue. `attained_s` is its run's work so far, in seconds of a worker. `deadline` is the time at
    which it expires. `worker` is the one that it waits for."""

    request: int
    tenant: str
    run: str
    band: Band
    arrival: float
    deadline: float
    uncached_tokens: int
    worker: str = ""
    resident: bool = False
    attained_s: float = 0.0
    num_bytes: int = 0
    admitted_run: bool = False
    """Whether it continues an admitted run. Such a request is never evicted."""

    @property
    def line(self) -> Line:
        return Line(self.band.line, self.tenant, self.worker)


_Place = tuple[bool, float, float, int]
"""Sort key within a tenant and band."""


def _place(item: QueuedRequest) -> _Place:
    first = item.attained_s if item.resident else item.arrival + SERVED_WEIGHT * item.attained_s
    return (not item.resident, first, item.arrival, item.request)


class RequestQueue:
    """At most `max_waiting` requests, `max_tokens` uncached tokens and `max_bytes`. A single request may be larger.

    `weights` of tenants default to one. `cold_share` is of the prefill rate.
    """

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
        self._lines: dict[Line, list[_Place]] = {}
        self._cold: list[tuple[float, int]] = []
        """Requests that are not resident, by arrival."""
        self._uncached = self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Set the weights from now on. Work already charged stays charged."""
        self._weights = weights

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    @property
    def uncached_tokens(self) -> int:
        """Number of uncached tokens of all waiting requests."""
        return self._uncached

    def push(self, item: QueuedRequest) -> bool:
        """Add a request, or replace the one with the same number and keep its arrival. Return False if the queue is full."""
        old = self._waiting.get(item.request)
        if old is None and self._has_no_space(item):
            return False
        if old is not None:
            self._take(old)
            item = msgspec.structs.replace(item, arrival=old.arrival)
        if item.tenant not in self._per_tenant:  # an absent tenant has saved up nothing
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
        """Remove and return the latest request of the lowest band. A turn of an admitted run evicts from any tenant;
        another request only from the tenant with the most requests per weight, and never from its own tenant."""
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
        """Return whether the queue is full, and only a turn of an admitted run of this tenant could evict a request."""
        return 0 < self._max_waiting <= len(self._waiting) and self._heavier(tenant) is None

    def _heavier(self, tenant: str) -> str | None:
        """Return the tenant with the most waiting requests per weight, if that exceeds this tenant's with one more request."""
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
        closed: Callable[[Line], bool] = lambda line: False,
        owed: Collection[str] = (),
    ) -> QueuedRequest | None:
        """Remove, charge and return the first request in order that is `ready`, or None. A line is skipped once it is
        `closed`.

        `prefill_rate` is in tokens per second, of all workers together. `owed` are the workers at which batch goes first.
        """
        self._earn(now, prefill_rate)
        for item in self._overdue(now):
            if ready(item):
                self._cold_budget -= item.uncached_tokens
                return self._charge(item)
        for item in self._in_order(closed, owed):
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

    def _in_order(self, closed: Callable[[Line], bool], owed: Collection[str]) -> Iterator[QueuedRequest]:
        """Yield requests lazily, as mostly the first one is taken."""
        groups: dict[tuple[int, float, str], list[Iterator[_Place]]] = {}
        for line, places in self._lines.items():
            if not closed(line):
                rank = -1 if line.band is Band.BATCH and line.worker in owed else int(line.band)
                group = groups.setdefault((rank, self._work[line.tenant], line.tenant), [])
                group.append(_until_closed(line, places, closed))
        for key in sorted(groups):
            for place in merge(*groups[key]):
                yield self._waiting[place[-1]]

    def _line_up(self, item: QueuedRequest) -> None:
        insort(self._lines.setdefault(item.line, []), _place(item))
        if not item.resident:
            insort(self._cold, (item.arrival, item.request))

    def _step_out(self, item: QueuedRequest) -> None:
        line = self._lines[item.line]
        del line[bisect_left(line, _place(item))]
        if not line:
            del self._lines[item.line]
        if not item.resident:
            del self._cold[bisect_left(self._cold, (item.arrival, item.request))]

    def _put(self, item: QueuedRequest) -> None:
        """Replace the waiting request with the same number."""
        self._step_out(self._waiting[item.request])
        self._waiting[item.request] = item
        self._line_up(item)

    def _charge(self, item: QueuedRequest) -> QueuedRequest:
        self._work[item.tenant] += max(1, item.uncached_tokens) / self.weight(item.tenant)
        self._take(item)
        return item

    def requests(self) -> tuple[int, ...]:
        """Return the request numbers in order of arrival in this queue."""
        return tuple(self._waiting)

    def lengths(self) -> Iterator[tuple[Line, int]]:
        """Yield each line with its number of waiting requests."""
        return ((line, len(places)) for line, places in self._lines.items())

    def has_batch(self, worker: str) -> bool:
        return any(line.band is Band.BATCH and line.worker == worker for line in self._lines)

    def refresh(self, request: int, *, uncached_tokens: int, resident: bool, worker: str = "") -> None:
        """Update the worker and the resident part of a waiting request."""
        item = self._waiting.get(request)
        if item is not None and (item.uncached_tokens, item.resident, item.worker) != (uncached_tokens, resident, worker):
            self._uncached += uncached_tokens - item.uncached_tokens
            self._put(msgspec.structs.replace(item, uncached_tokens=uncached_tokens, resident=resident, worker=worker))

    def cancel(self, request: int) -> bool:
        """Remove a request. Return False if it does not wait."""
        item = self._waiting.get(request)
        if item is not None:
            self._take(item)
        return item is not None

    def expire(self, now: float) -> list[QueuedRequest]:
        """Remove and return the requests past their deadline, the longest waiting first."""
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
        """Assert the invariants. For tests."""
        assert len(self._waiting) <= self._max_waiting
        assert self._uncached == sum(item.uncached_tokens for item in self._waiting.values())
        assert self._bytes == sum(item.num_bytes for item in self._waiting.values())
        assert sum(self._per_tenant.values()) == len(self._waiting)
        assert self._per_tenant.keys() <= self._work.keys()
        lined_up = [(line, self._waiting[place[-1]]) for line, places in self._lines.items() for place in places]
        assert {item.request for _, item in lined_up} == self._waiting.keys() and len(lined_up) == len(self._waiting)
        assert all(line == item.line for line, item in lined_up)
        assert all(places == sorted(places) for places in self._lines.values())
        assert self._cold == sorted((item.arrival, item.request) for item in self._waiting.values() if not item.resident)


def _until_closed(line: Line, places: list[_Place], closed: Callable[[Line], bool]) -> Iterator[_Place]:
    for place in places:
        if closed(line):
            return
        yield place
