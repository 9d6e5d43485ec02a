"""Which request may take a worker's next seat, and with which priority it runs there."""

from collections.abc import Callable

from gateway.fleet.fleet import Fleet
from gateway.scheduling.batch_share import BatchShare
from gateway.scheduling.fairness import TenantShares, is_reserved
from gateway.scheduling.request_queue import Band


class WorkerSeats:
    """Capacity of all workers: seats and uncached tokens by their credits, with seats reserved for other tenants."""

    def __init__(self, fleet: Fleet, weight: Callable[[str], float], *, clock: Callable[[], float]) -> None:
        self._fleet, self._clock = fleet, clock
        self.tenant_shares = TenantShares(weight, fleet.policy.scheduling.tenant_idle_s)
        self.batch_shares = {name: BatchShare(fleet.policy.scheduling.batch_share) for name in fleet.predictors}

    def take_policy(self) -> None:
        """Take over the shares of a policy that was reloaded."""
        scheduling = self._fleet.policy.scheduling
        self.tenant_shares.idle_s = scheduling.tenant_idle_s
        for batch_share in self.batch_shares.values():
            batch_share.share = scheduling.batch_share

    @property
    def by_run(self) -> bool:
        """Whether the policy orders by runs; else requests go first come, first served."""
        return self._fleet.policy.scheduling.order == "runs"

    def owed(self) -> frozenset[str]:
        """Return the workers at which batch requests go first, for their share of the starts."""
        return frozenset(name for name, share in self.batch_shares.items() if share.is_owed) if self.by_run else frozenset()

    def is_free(self, tenant: str, band: Band, worker: str) -> bool:
        """Return whether a worker has a seat for a tenant's request of a band.

        The last seats are reserved: batch gets none of them unless they are its share, and a tenant at its share gets none.
        """
        credits = self._fleet.server(worker).credits
        if credits.num_free < 1:
            return False
        client = self._fleet.clients.get(worker)
        hello = client.hello if client else None
        if not hello or not self.by_run or not credits.live or not is_reserved(credits.num_free, hello.max_sequences):
            return True
        now, shares = self._clock(), self.tenant_shares
        if band is Band.BATCH and not self.batch_shares[worker].is_owed and not shares.is_batch_alone(now):
            return False
        return not shares.is_at_share(tenant, credits.taken, hello.max_sequences, now)

    def priority(self, tenant: str, band: Band, worker: str) -> int:
        """Return the priority at the worker, where lower runs first: by band, then tenants below their share.

        Batch work that is owed a start runs with the turns of agents.
        """
        client = self._fleet.clients.get(worker)
        if client is None or not self.by_run:
            return 0
        is_owed = band is Band.BATCH and self.batch_shares[worker].is_owed
        num_seats = client.hello.max_sequences if client.hello else 1
        at_share = self.tenant_shares.is_at_share(tenant, client.credits.taken, num_seats, self._clock())
        return 2 * int(Band.AGENT_TURN if is_owed else band.line) + at_share
