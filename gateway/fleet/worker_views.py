"""How every worker stands, kept up to date: a view is made anew only when something about its worker changed."""

from collections.abc import Callable, Iterable

from gateway.routing.decision import RoutingRequest, WorkerView
from gateway.routing.shortlist import Short, Shortlist

FEW = 64
"""Up to so many workers are all looked at: that takes less than choosing whom to look at."""


class WorkerViews:
    """`view` makes the view of a worker at a time. A report counts for `fresh_s`, after which the view is made without it."""

    def __init__(self, workers: Iterable[str], view: Callable[[str, float], WorkerView], fresh_s: float) -> None:
        self._workers = tuple(workers)
        self._view = view
        self._fresh_s = fresh_s
        self._touched = set(self._workers)
        self._views: dict[str, WorkerView] = {}
        self._shortlist: Shortlist | None = None
        self._reports: dict[str, float] = {}

    def touch(self, worker: str) -> None:
        """Its view is no longer right."""
        self._touched.add(worker)

    def touch_all(self) -> None:
        """Also models and tiers may differ."""
        self._touched.update(self._workers)
        self._shortlist = None

    def loaded(self, worker: str, now: float) -> None:
        """It reported; reports are told in order of time."""
        self._reports.pop(worker, None)
        self._reports[worker] = now

    def candidates(self, routing_request: RoutingRequest, now: float) -> Short:
        """Those among which deciding gives what it would give among all."""
        self.refresh(now)
        if self._shortlist is None:
            return Short([self._views[worker] for worker in self._workers], None)
        return self._shortlist.take(routing_request)

    def views(self, now: float) -> list[WorkerView]:
        """All of them."""
        self.refresh(now)
        return [self._views[worker] for worker in self._workers]

    def refresh(self, now: float) -> None:
        """Takes in what changed."""
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
