"""Cached views of all workers. A view is rebuilt only when something about its worker changed."""

from collections.abc import Callable, Iterable

from gateway.routing.decision import RoutingRequest, WorkerView
from gateway.routing.shortlist import Short, Shortlist

FEW = 64
"""Workers up to which every decision considers all: that is cheaper than keeping a shortlist."""


class WorkerViews:
    """Views of `workers`. `view` builds the view of a worker at a time. A load report is valid for `fresh_s` seconds."""

    def __init__(self, workers: Iterable[str], view: Callable[[str, float], WorkerView], fresh_s: float) -> None:
        self._workers = tuple(workers)
        self._view = view
        self._fresh_s = fresh_s
        self._touched = set(self._workers)
        self._views: dict[str, WorkerView] = {}
        self._shortlist: Shortlist | None = None
        self._reports: dict[str, float] = {}

    def touch(self, worker: str) -> None:
        """Mark a worker's view as outdated."""
        self._touched.add(worker)

    def touch_all(self) -> None:
        """Mark all views as outdated, also their models and tiers."""
        self._touched.update(self._workers)
        self._shortlist = None

    def loaded(self, worker: str, now: float) -> None:
        """Record the time of a worker's load report. Times must not decrease."""
        self._reports.pop(worker, None)
        self._reports[worker] = now

    def candidates(self, routing_request: RoutingRequest, now: float) -> Short:
        """Return a subset of the views in which the decision is the same as among all."""
        self.refresh(now)
        if self._shortlist is None:
            return Short([self._views[worker] for worker in self._workers], None)
        return self._shortlist.take(routing_request)

    def views(self, now: float) -> list[WorkerView]:
        self.refresh(now)
        return [self._views[worker] for worker in self._workers]

    def refresh(self, now: float) -> None:
        """Rebuild the views that are outdated or whose report has expired."""
        while self._reports and now - self._reports[oldest := next(iter(self._reports))] > self._fresh_s:
            del self._reports[oldest]
            self._touched.add(oldest)
        for worker in self._touched:
            view = self._views[worker] = self._view(worker, now)
            if self._shortlist is not None:
                self._shortlist.put(view)
        self._touched.clear()
        if self._shortlist is None and len(self._workers) > FEW:
            self._shortlist = Shortlist(self._views[worker] for worker in self._workers)
