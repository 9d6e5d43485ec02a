"""One scan of the waiting requests: which may start now. A full pass visits every line, a quick one skips lines without a seat.

A line is a tenant's requests of one band. The pass holds the event loop, so decisions and visits of each line are bounded. The
rest is visited when the next worker reports.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping

from gateway.errors import HeadwayError
from gateway.fleet.fleet import Fleet
from gateway.pipeline.pending import PendingRequest, SeatClass
from gateway.pipeline.queue_estimator import QueueEstimator
from gateway.pipeline.worker_seats import WorkerSeats
from gateway.routing.decision import Decision
from gateway.scheduling.request_queue import Band, QueuedRequest

MAX_DECISIONS_PER_LINE, MAX_VISITS_PER_LINE = 4, 128
"""Derived: a decision takes about 0.3 ms, so four lines' worth hold the event loop for 5 ms."""
BLOCKS_AFTER_S = 0.05
"""Seconds after which a request that lacks capacity blocks lower priorities at its worker. Derived: one or two engine steps."""
KEEP_DECISION_S, KEEP_DECISION_SHARE = 0.1, 0.05
"""A decision holds for so many seconds while its worker has no seat, or for this share of the time waited if that is more."""

Line = tuple[str, Band]


class DispatchPass:
    """`waiting` is by request number, `decide` decides as the world is now. `outcome` is that of the last ready request."""

    def __init__(
        self,
        fleet: Fleet,
        seats: WorkerSeats,
        estimator: QueueEstimator,
        waiting: Mapping[int, PendingRequest],
        decide: Callable[[PendingRequest], Decision],
        *,
        now: float,
        is_full: bool,
    ) -> None:
        self._fleet, self._worker_seats, self._estimator = fleet, seats, estimator
        self._waiting, self._decide, self._now, self._is_full = waiting, decide, now, is_full
        self.outcome: Decision | HeadwayError | None = None
        self._blocked_at: dict[str, int] = {}
        """By worker: the priority of a request that waits for capacity; requests of no better priority do not overtake it."""
        self._seats: dict[tuple[str, SeatClass], bool] = {}
        """Whether a worker has a seat for a class."""
        self._num_decided, self._num_visited = Counter[Line](), Counter[Line]()
        self._blocked, self._open = set[Line](), set[Line]()
        """Lines in which no request can start, and in which one may."""

    def is_ready(self, item: QueuedRequest) -> bool:
        """Return whether a request starts now, with `outcome` set to its decision, or to the error that ends it."""
        pending, line = self._waiting[item.request], (item.tenant, item.band.line)
        self._num_visited[line] += 1
        if self._num_decided[line] >= MAX_DECISIONS_PER_LINE:
            return False
        seat_class = self._worker_seats.seat_class(pending)
        if not self._may_start(pending, seat_class):
            if not seat_class.is_overdue and not any(self._has_seat(seat_class, name) for name in self._fleet.predictors):
                self._blocked.add(line)
            return False
        self._num_decided[line] += 1
        try:
            decision = self._decide(pending)
        except HeadwayError as error:
            self.outcome = error
            return True
        self.outcome = pending.decision = decision
        keep_decision(pending, self._now)
        self._estimator.count(pending, decision.chosen.worker)
        return self._can_start(pending, seat_class, decision)

    def is_closed(self, tenant: str, band: Band) -> bool:
        """Return whether no more of a line is visited in this pass."""
        line = tenant, band
        if line in self._blocked or self._num_decided[line] >= MAX_DECISIONS_PER_LINE:
            return True
        if self._num_visited[line] >= MAX_VISITS_PER_LINE:
            return True
        return not self._is_full and self._worker_seats.by_run and not self._has_seats(line)

    def seat_taken(self) -> None:
        """Forget what depends on free seats."""
        self._seats.clear()
        self._num_visited.clear()
        self._open.clear()

    def _has_seats(self, line: Line) -> bool:
        """Return whether a worker chosen for a request of a line has a seat for it."""
        if line in self._open:
            return True
        tenant, band = line
        is_batch = band is Band.BATCH
        workers = {worker for worker, other, batch in self._estimator.waiting if other == tenant and batch == is_batch}
        classes = [SeatClass(tenant, band, has_slo, is_overdue=False) for has_slo in (False, True)]
        has_seats = any(self._has_seat(seat_class, worker) for worker in workers for seat_class in classes)
        (self._open if has_seats else self._blocked).add(line)
        return has_seats

    def _may_start(self, pending: PendingRequest, seat_class: SeatClass) -> bool:
        """Return whether deciding is worth its time: a worker has a seat, or none is up, which is an error to report."""
        decision = pending.decision
        if decision and self._now < pending.decision_kept_until and self._fleet.server(decision.chosen.worker).healthy:
            return self._can_start(pending, seat_class, decision)
        workers = [worker for worker in pending.prompts if worker not in pending.excluded]
        if any(self._has_seat(seat_class, worker) for worker in workers):
            return True
        return not any(self._fleet.server(worker).healthy for worker in workers)

    def _has_seat(self, seat_class: SeatClass, worker: str) -> bool:
        key = worker, seat_class
        if key not in self._seats:
            is_free = self._worker_seats.is_free(seat_class, worker)
            priority = self._worker_seats.priority(seat_class, worker)
            self._seats[key] = is_free and priority < self._blocked_at.get(worker, math.inf)
        return self._seats[key]

    def _can_start(self, pending: PendingRequest, seat_class: SeatClass, decision: Decision) -> bool:
        """Return whether the chosen worker has a seat and capacity for the prompt."""
        worker = decision.chosen.worker
        if not self._has_seat(seat_class, worker):
            return False
        has_capacity = self._worker_seats.has_capacity(seat_class, decision)
        if not has_capacity and self._now - pending.arrival >= BLOCKS_AFTER_S:
            self._blocked_at[worker] = self._worker_seats.priority(seat_class, worker)
            self._seats.clear()
        return has_capacity


def keep_decision(pending: PendingRequest, now: float) -> None:
    """Let the decision of a waiting request hold for a while."""
    pending.decision_kept_until = now + max(KEEP_DECISION_S, KEEP_DECISION_SHARE * (now - pending.arrival))
