"""Which request may take a worker's next seat, and with which priority it runs there."""

from collections.abc import Callable

from gateway.fleet.fleet import Fleet
from gateway.fleet.token_stream import TokenStream
from gateway.pipeline.pending import PendingRequest, SeatClass
from gateway.routing.decision import Decision
from gateway.scheduling.fairness import LEVELS, TenantShares, is_kept
from gateway.scheduling.request_queue import Band


class WorkerSeats:
    """Capacity of all workers: seats and uncached tokens by their credits, with seats reserved for other tenants."""

    def __init__(self, fleet: Fleet, tenant_shares: TenantShares, *, clock: Callable[[], float]) -> None:
        self._fleet, self._tenant_shares, self._clock = fleet, tenant_shares, clock
        self._overdue_batch: dict[str, TokenStream] = {}
        """By worker: the overdue batch request in one of its reserved seats. One at a time."""

    @property
    def by_run(self) -> bool:
        """Whether the policy orders by runs; else requests go first come, first served."""
        return self._fleet.policy.scheduling.order == "runs"

    def seat_class(self, pending: PendingRequest) -> SeatClass:
        is_overdue = pending.band is Band.BATCH and self._clock() >= pending.due
        return SeatClass(pending.tenant, pending.band.line, pending.on_overload != "queue", is_overdue)

    def is_free(self, seat_class: SeatClass, worker: str) -> bool:
        return self._fleet.server(worker).credits.num_free >= 1 and not self.is_reserved(seat_class, worker)

    def has_capacity(self, seat_class: SeatClass, decision: Decision) -> bool:
        """Return whether the chosen worker's credits take the uncached prompt."""
        chosen = decision.chosen
        uncached = chosen.prompt_tokens - chosen.cached_tokens
        return self._fleet.server(chosen.worker).credits.has_capacity(uncached, self.priority(seat_class, chosen.worker))

    def is_reserved(self, seat_class: SeatClass, worker: str) -> bool:
        """Return whether the next seat of a worker is reserved for others.

        Of the last seats, batch work gets none where SLOs are judged, but for one overdue request at a time. A tenant at its
        share gets none.
        """
        client = self._fleet.clients.get(worker)
        hello = client.hello if client else None
        if client is None or not hello or not self.by_run:
            return False
        credits = client.credits
        if not credits.live or not is_kept(credits.num_free, hello.max_sequences):
            return False
        if seat_class.line is Band.BATCH and seat_class.has_slo:
            running = self._overdue_batch.get(worker)
            return not seat_class.is_overdue or (running is not None and running.finished is None)
        return self._tenant_shares.is_at_share(seat_class.tenant, credits.taken, hello.max_sequences, self._clock())

    def take(self, seat_class: SeatClass, worker: str, stream: TokenStream) -> None:
        """Record a request that was submitted."""
        if seat_class.is_overdue:
            self._overdue_batch[worker] = stream

    def priority(self, seat_class: SeatClass, worker: str) -> int:
        """Return the priority at the worker, where lower runs first: by band, then by the tenant's part of its share.

        Overdue batch work runs with the turns of agents.
        """
        if not self.by_run or worker not in self._fleet.clients:
            return 0
        client = self._fleet.clients[worker]
        total = client.hello.max_sequences if client.hello else 1
        level = self._tenant_shares.level(seat_class.tenant, client.credits.taken, total, self._clock())
        return LEVELS * int(Band.AGENT_TURN if seat_class.is_overdue else seat_class.line) + level
