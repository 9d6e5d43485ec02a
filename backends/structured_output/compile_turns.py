"""Turns of tenants whose grammars wait to be compiled: one at a time for each tenant, the longest without a turn first."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from backends.structured_output.trial_lane import TrialLane

Job = Callable[[TrialLane], None]
MAX_WAITING = 32
"""Grammars of one tenant that wait. More are refused at once."""


class CompileTurns:
    """Jobs of tenants for a few threads. `next` blocks until a tenant without a running job has one."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running: set[str] = set()
        self._changed = threading.Condition()

    def add(self, tenant: str, job: Job) -> bool:
        """Queue a job. Return False if too many of the tenant wait."""
        with self._changed:
            jobs = self._waiting.setdefault(tenant, deque())
            if len(jobs) >= MAX_WAITING:
                return False
            jobs.append(job)
            self._changed.notify()
            return True

    def next(self) -> tuple[str, Job]:
        """Return a tenant and its job. `done` ends the turn."""
        with self._changed:
            while (tenant := next((name for name in self._waiting if name not in self._running), None)) is None:
                self._changed.wait()
            jobs = self._waiting.pop(tenant)
            job = jobs.popleft()
            if jobs:
                self._waiting[tenant] = jobs  # behind all others
            self._running.add(tenant)
            return tenant, job

    def done(self, tenant: str) -> None:
        with self._changed:
            self._running.discard(tenant)
            self._changed.notify()
