"""Worker time in seconds and dollars, from the differences between load reports. Pure."""

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


class WorkerTime:
    """Time of one worker. A report below the last one comes from a new process, whose time starts at zero."""

    def __init__(self, usd_per_s: float) -> None:
        self.usd_per_s = usd_per_s
        self.total = Spent()
        self._taken = Spent()
        self._last: DeviceTime | None = None

    def observe(self, now: DeviceTime) -> None:
        """Add the time since the last report. The first report only sets the start: earlier time is not charged here."""
        last, self._last = self._last, now
        if last is None:
            return
        if now.busy_s < last.busy_s or now.idle_s < last.idle_s:
            last = _NOTHING
        step = DeviceTime(
            busy_s=now.busy_s - last.busy_s,
            idle_s=now.idle_s - last.idle_s,
            attributed_s=now.attributed_s - last.attributed_s,
        )
        self.total = self.total.plus(Spent(step.busy_s, step.idle_s, *step.split_usd(self.usd_per_s)))

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

    def observe(self, worker: str, load: Load) -> None:
        self.workers[worker].observe(DeviceTime(busy_s=load.busy_s, idle_s=load.idle_s, attributed_s=load.attributed_s))

    def rows(self, at: float) -> list[DeviceRow]:
        """Return ledger rows of the time since the last call, for workers that reported any."""
        rows = []
        for name, worker in self.workers.items():
            new = worker.take()
            if new.busy_s or new.idle_s:
                rows.append(DeviceRow(at=at, worker=name, model=self._models[name], **new._asdict()))
        return rows
