"""Estimates of the time until a request of a tenant starts on each worker, from what waits and what runs."""

from collections import Counter, defaultdict
from collections.abc import Callable

from gateway.fleet.fleet import Fleet
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.worker_seats import WorkerSeats
from gateway.scheduling.admission import QueueEstimate
from gateway.scheduling.request_queue import Band, RequestQueue
from gateway.scheduling.ttft_margin import TtftMargin


class QueueEstimator:
    """Estimates from the lines of the queue, and from the errors of earlier predictions."""

    def __init__(self, fleet: Fleet, queue: RequestQueue, seats: WorkerSeats, *, clock: Callable[[], float]) -> None:
        self._fleet, self._queue, self._seats, self._clock = fleet, queue, seats, clock
        self.ttft_margins: defaultdict[str, TtftMargin] = defaultdict(TtftMargin)
        """By worker."""

    def estimates(self, tenant: str, band: Band) -> dict[str, QueueEstimate]:
        """Return an estimate for each worker, for the next request of a tenant in a band."""
        if not self._seats.by_run:
            tenant, band = "", Band.AGENT_TURN
        now, is_batch = self._clock(), band is Band.BATCH
        ahead = self._num_ahead(tenant, is_batch=is_batch)
        estimates = {}
        for view in self._fleet.views():
            worker, num_ahead = view.worker, ahead.get(view.worker, 0.0)
            predictor = self._fleet.predictors[worker]
            if is_batch and predictor.running:  # of the next starts, batch gets its pace
                num_ahead = (num_ahead + 1) / self._seats.batch_shares[worker].pace - 1
            running_s = predictor.wait_s(max_sequences=view.max_sequences, queued_tokens=0, now=now)
            turns_s = predictor.turns_s(num_ahead)
            margin = self.ttft_margins[worker].margin(now)
            idle = not predictor.running and not turns_s
            estimates[worker] = QueueEstimate(view.wait_s, running_s + turns_s, margin, idle)
        return estimates

    def observe_ttft(self, pending: PendingRequest, ttft_s: float) -> None:
        """Learn from a first token, `ttft_s` seconds after the arrival of its request. Batch work has no objective for it."""
        if pending.ttft_prediction is not None and pending.band is not Band.BATCH:
            worker, predicted_s, at = pending.ttft_prediction
            self.ttft_margins[worker].observe(predicted_s, ttft_s, self._clock(), predicted_at=at)
        pending.ttft_prediction = None

    def _num_ahead(self, tenant: str, *, is_batch: bool) -> dict[str, float]:
        """Return by worker the number of waiting requests that start before the next one of a tenant.

        Batch counts behind batch only, as its pace accounts for the rest. For the rest the requests that it may overtake count
        too, as they have SLOs as well. Requests of another tenant start before it only in turns with its own.
        """
        waiting: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for line, count in self._queue.lengths():
            if is_batch == (line.band is Band.BATCH):
                waiting[line.worker][line.tenant] += count
        weight, ahead = self._queue.weight(tenant), {}
        for worker, tenants in waiting.items():
            turns = (tenants[tenant] + 1) / weight
            others = (min(count, turns * self._queue.weight(other)) for other, count in tenants.items() if other != tenant)
            ahead[worker] = tenants[tenant] + sum(others)
        return ahead
