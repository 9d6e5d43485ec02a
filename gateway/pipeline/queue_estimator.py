"""Estimates of the time until a request of a tenant starts on each worker, from what waits and what runs."""

from collections import Counter, defaultdict
from collections.abc import Callable

from gateway.fleet.fleet import Fleet
from gateway.pipeline.pending import PendingRequest
from gateway.scheduling.admission import QueueEstimate
from gateway.scheduling.request_queue import Band, DequeueRate
from gateway.scheduling.ttft_margin import TtftMargin


class QueueEstimator:
    """Counts of waiting requests by worker, and what earlier predictions were short by. `weight` is a tenant's."""

    def __init__(self, fleet: Fleet, weight: Callable[[str], float], *, clock: Callable[[], float]) -> None:
        self._fleet, self._weight, self._clock = fleet, weight, clock
        self.ttft_margins: defaultdict[tuple[str, bool], TtftMargin] = defaultdict(TtftMargin)
        """By worker, and whether it is batch work."""
        self.waiting = Counter[tuple[str, str, bool]]()
        """Number of waiting requests by the worker chosen last, tenant, and whether it is batch work."""
        self._dequeue_rates: defaultdict[str, DequeueRate] = defaultdict(DequeueRate)
        """Of batch work, by worker."""

    def estimates(self, tenant: str, band: Band) -> dict[str, QueueEstimate]:
        """Return an estimate for each worker, for the next request of a tenant in a band."""
        now, is_batch = self._clock(), band is Band.BATCH
        ahead = self._num_ahead(tenant, is_batch=is_batch)
        estimates = {}
        for view in self._fleet.views():
            predictor, num_ahead = self._fleet.predictors[view.worker], ahead.get(view.worker, 0.0)
            running_s = predictor.wait_s(max_sequences=view.max_sequences, queued_tokens=0, now=now)
            turns_s = predictor.turns_s(num_ahead)
            margin = self.ttft_margins[view.worker, is_batch].margin(now)
            idle = not predictor.running and not turns_s
            lately_s = self._dequeue_rates[view.worker].wait_s(num_ahead, now) if is_batch else 0.0
            estimates[view.worker] = QueueEstimate(view.wait_s, running_s + turns_s, margin, idle, lately_s)
        return estimates

    def count(self, pending: PendingRequest, worker: str | None, *, starts: bool = False) -> None:
        """Count a waiting request for the worker chosen last; for None it waits no more, and `starts` or leaves."""
        is_batch, previous = pending.band is Band.BATCH, pending.counted_worker
        if previous == worker:
            return
        pending.counted_worker = worker
        if previous is not None:
            key = previous, pending.tenant, is_batch
            self.waiting[key] -= 1
            if not self.waiting[key]:
                del self.waiting[key]
            if is_batch and starts:
                others = any(name == previous and batch for name, _, batch in self.waiting)
                self._dequeue_rates[previous].record_start(self._clock(), others=others)
        if worker is not None:
            self.waiting[worker, pending.tenant, is_batch] += 1
            if is_batch:
                self._dequeue_rates[worker].record_waiting(self._clock())

    def observe_ttft(self, pending: PendingRequest, ttft_s: float) -> None:
        """Learn from a first token, `ttft_s` seconds after the arrival of its request."""
        if pending.ttft_prediction is not None:
            worker, predicted_s, at = pending.ttft_prediction
            pending.ttft_prediction = None
            margin = self.ttft_margins[worker, pending.band is Band.BATCH]
            margin.observe(predicted_s, ttft_s, self._clock(), predicted_at=at)

    def _num_ahead(self, tenant: str, *, is_batch: bool) -> dict[str, float]:
        """Return by worker the number of waiting requests that start before the next one of a tenant.

        Batch work starts after the rest. For the rest the requests that it may overtake count too, as they have SLOs as well.
        Requests of another tenant start before it only in turns with its own.
        """
        waiting: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (worker, other, other_is_batch), count in self.waiting.items():
            if is_batch or not other_is_batch:
                waiting[worker][other] += count
        weight, ahead = self._weight(tenant), {}
        for worker, tenants in waiting.items():
            turns = (tenants[tenant] + 1) / weight
            others = (min(count, turns * self._weight(other)) for other, count in tenants.items() if other != tenant)
            ahead[worker] = tenants[tenant] + sum(others)
        return ahead
