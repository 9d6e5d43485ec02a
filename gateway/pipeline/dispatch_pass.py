"""One pass over the waiting requests: which may start now.

A line of the queue is a tenant's requests of one band that wait for one worker. A line whose worker has no seat for it is
skipped whole. A request is decided again before it starts, so it may start elsewhere.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping

from gateway.errors import HeadwayError
from gateway.fleet.fleet import Fleet
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.worker_seats import WorkerSeats
from gateway.routing.decision import Decision
from gateway.scheduling.request_queue import Line, QueuedRequest

MAX_DECISIONS_PER_LINE = 4
"""Derived: a decision takes about 0.3 ms, so four lines' worth hold the event loop for 5 ms. The rest is visited when the next
worker reports."""
BLOCKS_AFTER_S = 0.05
"""Seconds after which a request that lacks capacity blocks lower priorities at its worker. Derived: one or two engine steps."""


class DispatchPass:
    """`waiting` is by request number, `decide` decides as the world is now. `outcome` is that of the last ready request.

    `moved` are the decisions that chose another worker than the one that the request waits for.
    """

    def __init__(
        self,
        fleet: Fleet,
        seats: WorkerSeats,
        waiting: Mapping[int, PendingRequest],
        decide: Callable[[PendingRequest], Decision],
        *,
        now: float,
    ) -> None:
        self._fleet, self._worker_seats, self._waiting, self._decide, self._now = fleet, seats, waiting, decide, now
        self.outcome: Decision | HeadwayError | None = None
        self.moved: dict[int, Decision] = {}
        self._blocked_at: dict[str, int] = {}
        """By worker: the priority of a request that waits for capacity; requests of no better priority do not overtake it."""
        self._has_seat: dict[Line, bool] = {}
        self._num_decided = Counter[Line]()

    def is_closed(self, line: Line) -> bool:
        """Return whether no more of a line is visited in this pass. A line of a lost worker is open: it must be decided."""
        if self._num_decided[line] >= MAX_DECISIONS_PER_LINE:
            return True
        return not self._seat_for(line) and self._fleet.server(line.worker).healthy

    def is_ready(self, item: QueuedRequest) -> bool:
        """Return whether a request starts now, with `outcome` set to its decision, or to the error that ends it."""
        pending, line = self._waiting[item.request], item.line
        if item.request in self.moved or self.is_closed(line):
            return False
        assert pending.decision
        if self._fleet.server(line.worker).healthy and not self._can_start(pending, pending.decision, line):
            return False
        self._num_decided[line] += 1
        try:
            decision = self._decide(pending)
        except HeadwayError as error:
            self.outcome = error
            return True
        self.outcome = pending.decision = decision
        if decision.chosen.worker != line.worker:
            self.moved[item.request] = decision
        return self._can_start(pending, decision, line)

    def seat_taken(self) -> None:
        """Forget what depends on free seats."""
        self._has_seat.clear()

    def _seat_for(self, line: Line) -> bool:
        if line not in self._has_seat:
            is_free = self._worker_seats.is_free(line.tenant, line.band, line.worker)
            self._has_seat[line] = is_free and self._priority(line) < self._blocked_at.get(line.worker, math.inf)
        return self._has_seat[line]

    def _priority(self, line: Line) -> int:
        return self._worker_seats.priority(line.tenant, line.band, line.worker)

    def _can_start(self, pending: PendingRequest, decision: Decision, line: Line) -> bool:
        """Return whether the chosen worker has a seat and capacity for the prompt."""
        chosen = decision.chosen
        line = line._replace(worker=chosen.worker)
        if not self._seat_for(line):
            return False
        uncached, priority = chosen.prompt_tokens - chosen.cached_tokens, self._priority(line)
        has_capacity = self._fleet.server(chosen.worker).credits.has_capacity(uncached, priority)
        if not has_capacity and self._now - pending.arrival >= BLOCKS_AFTER_S:
            self._blocked_at[chosen.worker] = priority
            self._has_seat.clear()
        return has_capacity
