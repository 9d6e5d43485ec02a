"""Worker time as it goes by, in dollars: what each new report adds to the one before it. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

from backends.wire import Load
from gateway.ledger.rows import DeviceRow
from gateway.metering.cost import DeviceTime

_NOTHING = DeviceTime(busy_s=0.0, idle_s=0.0, attributed_s=0.0)


class Spent(NamedTuple):
    """Sums since the gateway started. Dollars of what was charged, busy for nobody, and idle."""

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
    """One worker. A report that is behind the last one is of a new process, whose time starts at zero."""

    def __init__(self, usd_per_s: float) -> None:
        self.usd_per_s = usd_per_s
        self.total = Spent()
        self._told = Spent()
        self._last: DeviceTime | None = None

    def observe(self, now: DeviceTime) -> None:
        """The first report of a worker that was up before us counts from then on: what it did earlier was not ours."""
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
        """What came since the last call; they sum to the total."""
        new = self.total.minus(self._told)
        self._told = self.total
        return new


class DeviceTimes:
    """All workers of a fleet, by their price of a busy second."""

    def __init__(self, usd_per_s: Mapping[str, float], models: Mapping[str, str]) -> None:
        self.workers = {name: WorkerTime(price) for name, price in usd_per_s.items()}
        self._models = models

    def observe(self, worker: str, load: Load) -> None:
        self.workers[worker].observe(DeviceTime(busy_s=load.busy_s, idle_s=load.idle_s, attributed_s=load.attributed_s))

    def rows(self, at: float) -> list[DeviceRow]:
        """What came since the last call, for the ledger; nothing of workers that did not report."""
        found = []
        for name, worker in self.workers.items():
            new = worker.take()
            if new.busy_s or new.idle_s:
                found.append(DeviceRow(at=at, worker=name, model=self._models[name], **new._asdict()))
        return found
