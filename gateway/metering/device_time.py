"""Worker time in seconds and dollars, from the differences between load reports. Pure."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from backends.wire import Load
from gateway.ledger.rows import DeviceRow
from gateway.metering.cost import DeviceTime

_NOTHING = DeviceTime(busy_s=0.0, idle_s=0.0, attributed_s=0.0)


class Spent(NamedTuple):
    """Sums since the gateway started: seconds, and dollars charged, unattributed and idle."""

    busy_s: float = 0.0
    idle_s: float = 0.0
    charged_usd: float = 0.0
    unattributed_usd: float = 0.0
    idle_usd: float = 0.0

    def plus(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Spent") -> "Spent":
        return Spent(*(a - b for a, b in zip(self, other, strict=True)))


REPORT_DELAY_S = 2.0
"""Seconds by which reported time may run ahead of the wall clock: two intervals of an idle worker's reports. A report can be
late, and the next one then covers more than the time since."""


class WorkerTime:
    """Time of one worker. A report below the last one comes from a new process, whose time starts at zero. Reported time is
    counted up to the wall time since the first report; `excess_s` is the rest."""

    def __init__(self, usd_per_s: float) -> None:
        self.usd_per_s = usd_per_s
        self.total = Spent()
        self.excess_s = 0.0
        self._first_at: float | None = None
        self._taken = Spent()
        self._last: DeviceTime | None = None

    def observe(self, now: DeviceTime, at: float | None = None) -> None:
        """Add the time since the last report. The first report only sets the start: earlier time is not charged here. `at` is
        in seconds of the monotonic clock. Without it, reported time has no bound."""
        last, self._last = self._last, now
        if last is None:
            self._first_at = at
            return
        if now.busy_s < last.busy_s or now.idle_s < last.idle_s:
            last = _NOTHING
        busy_s, idle_s = now.busy_s - last.busy_s, now.idle_s - last.idle_s
        share = min(1.0, self._left_s(at) / (busy_s + idle_s)) if busy_s + idle_s > 0 else 1.0
        self.excess_s += (1.0 - share) * (busy_s + idle_s)
        attributed_s = min(max(0.0, now.attributed_s - last.attributed_s), busy_s)
        step = DeviceTime(busy_s=busy_s * share, idle_s=idle_s * share, attributed_s=attributed_s * share)
        self.total = self.total.plus(Spent(step.busy_s, step.idle_s, *step.split_usd(self.usd_per_s)))

    def _left_s(self, at: float | None) -> float:
        """Return the seconds since the first report that no report has covered."""
        if at is None or self._first_at is None:
            return math.inf
        return max(0.0, at - self._first_at + REPORT_DELAY_S - self.total.busy_s - self.total.idle_s)

    def take(self) -> Spent:
        """Return the time since the last call. All results sum to `total`."""
        new = self.total.minus(self._taken)
        self._taken = self.total
        return new


class DeviceTimes:
    """Times of all workers. `usd_per_s` is the price of a second by worker."""

    def __init__(self, usd_per_s: Mapping[str, float], models: Mapping[str, str]) -> None:
        self.workers = {name: WorkerTime(price) for name, price in usd_per_s.items()}
        self._models = models

    def observe(self, worker: str, load: Load, at: float | None = None) -> None:
        """Add the time of a report. `at` is in seconds of the monotonic clock, and bounds the time."""
        self.workers[worker].observe(DeviceTime(busy_s=load.busy_s, idle_s=load.idle_s, attributed_s=load.attributed_s), at)

    def rows(self, at: float) -> list[DeviceRow]:
        """Return ledger rows of the time since the last call, for workers that reported any."""
        rows = []
        for name, worker in self.workers.items():
            new = worker.take()
            if new.busy_s or new.idle_s:
                rows.append(DeviceRow(at=at, worker=name, model=self._models[name], **new._asdict()))
        return rows
