"""The product in the simulator: its own queue, retention and placement, driven by virtual workers."""

import itertools

from benchmarks.simulate_loop import Pending, Rates, VirtualWorker
from benchmarks.simulate_pool import Held, Tails, Worth
from gateway.scheduling.placement import Candidate, Placement
from gateway.scheduling.request_queue import Band, QueuedRequest, RequestQueue
from gateway.scheduling.retention import Retention, horizon_s

MAX_WAITING = 100_000


class Headway:
    keep_tails: Tails = "compacted"
    host_by_worth = True

    def __init__(self, workers: int, rates: Rates) -> None:
        self._rates = rates
        self._queues = [RequestQueue(MAX_WAITING) for _ in range(workers)]
        self._retention, self._placement = Retention(), Placement()
        self._numbers = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._waits: dict[int, Pending] = {}
        self._worths = [self._worth(number) for number in range(workers)]
        self._workers: list[VirtualWorker] = []

    def place(self, pending: Pending, workers: list[VirtualWorker], now: float) -> int:
        self._workers = workers
        number, chain = next(self._numbers), pending.chain
        self._retention.turn_arrived(str(chain.number), now)
        worker = workers[0]
        if len(workers) > 1:
            sites = [self._site(pending, each, now) for each in workers]
            worker = workers[int(self._placement.choose(sites, pending.turn.prompt, now).worker)]
        uncached = worker.uncached(pending)
        self._queues[worker.number].push(
            QueuedRequest(
                request=number,
                tenant="",
                run=str(chain.number),
                band=Band.AGENT_TURN if chain.turn else Band.NEW_RUN,
                arrival=now,
                deadline=float("inf"),
                uncached_tokens=uncached,
                resident=_is_resident(pending, uncached),
                attained_s=chain.attained / self._rates.prefill,
            )
        )
        self._pending[number] = self._waits[chain.number] = pending
        return worker.number

    def _site(self, pending: Pending, worker: VirtualWorker, now: float) -> Candidate:
        queue = self._queues[worker.number]
        held = worker.pool.chains.values()
        footprint = sum(each.tokens * self._score(each, worker, now) for each in held if each.chain != pending.chain.number)
        footprint += queue.uncached_tokens
        resident = worker.resident(pending)
        waits = queue.uncached_tokens if 2 * resident < pending.turn.prompt else 0
        return Candidate(
            worker=str(worker.number),
            wait_s=waits / self._rates.prefill,
            resident_tokens=resident,
            capacity_tokens=worker.pool.capacity,
            footprint_tokens=footprint,
            prefill_rate=self._rates.prefill,
        )

    def choose(self, worker: VirtualWorker, now: float) -> Pending | None:
        queue = self._queues[worker.number]
        for number in queue.requests():
            pending = self._pending[number]
            uncached = worker.uncached(pending)
            queue.refresh(number, uncached_tokens=uncached, resident=_is_resident(pending, uncached))
        item = queue.pop(lambda item: self._fits(item, worker), now=now, prefill_rate=self._rates.prefill)
        return self._pending.pop(item.request) if item else None

    def _fits(self, item: QueuedRequest, worker: VirtualWorker) -> bool:
        return worker.pool.fits(self._pending[item.request].total)

    def worth(self, worker: VirtualWorker) -> Worth:
        return self._worths[worker.number]

    def _worth(self, number: int) -> Worth:
        return lambda held, now: (self._score(held, self._workers[number], now), held.used_at)

    def _score(self, held: Held, worker: VirtualWorker, now: float) -> float:
        if held.pinned:
            return 1.0
        within_s = horizon_s(worker.pool.capacity, self._rates.prefill)
        pending = self._waits.get(held.chain)
        if pending is None:
            return self._retention.score(str(held.chain), now, within_s=within_s)
        here = pending.worker == worker.number
        return self._retention.score(
            str(held.chain), now, waits=True, resident=here and _is_resident(pending, worker.uncached(pending))
        )

    def started(self, pending: Pending, uncached: int, now: float) -> None:
        pending.chain.attained += uncached
        del self._waits[pending.chain.number]

    def finished(self, pending: Pending, now: float) -> None:
        """No event marks the end of a session: it only stops returning."""
        pending.chain.attained += pending.turn.output
        self._retention.turn_finished(str(pending.chain.number), now, finish=pending.turn.finish)


def _is_resident(pending: Pending, uncached: int) -> bool:
    return 2 * uncached <= pending.turn.prompt
