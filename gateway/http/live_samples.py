"""The last minutes of the fleet, for the dashboard's first view: one sample every few seconds, kept in memory."""

from collections import deque
from collections.abc import Mapping

import msgspec

from backends.wire import Load
from gateway.metering.device_time import DeviceTimes, Spent

MAX_SAMPLES = 180
"""A quarter of an hour at one in five seconds."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """`busy` and `idle` are dollars an hour since the sample before, `running` sequences by worker."""

    at: float
    queue: int
    runs: int
    running: dict[str, int]
    busy_usd_per_h: float
    idle_usd_per_h: float
    busy_share: dict[str, float]


class LiveSamples:
    def __init__(self, device_times: DeviceTimes) -> None:
        self.samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._times = device_times
        self._last: dict[str, Spent] = {}
        self._last_at = 0.0

    def sample(self, at: float, loads: Mapping[str, Load | None], *, num_queued: int, num_runs: int) -> None:
        """The first only marks where the others start, and so does each before every worker that is up has told of its time."""
        spent = {name: worker.total for name, worker in self._times.workers.items()}
        new = {name: total.minus(self._last.get(name, Spent())) for name, total in spent.items()}
        told = all(one.busy_s + one.idle_s for name, one in new.items() if loads.get(name))
        if self._last_at and at > self._last_at and (self.samples or (told and any(loads.values()))):
            self.samples.append(
                Sample(
                    at=at,
                    queue=num_queued,
                    runs=num_runs,
                    running={name: load.running if load else 0 for name, load in loads.items()},
                    busy_usd_per_h=sum(_per_hour(one, one.charged_usd + one.unattributed_usd) for one in new.values()),
                    idle_usd_per_h=sum(_per_hour(one, one.idle_usd) for one in new.values()),
                    busy_share={name: _share(one) for name, one in new.items()},
                )
            )
        self._last, self._last_at = spent, at


def _per_hour(spent: Spent, usd: float) -> float:
    """Of the time that was reported, which is not quite the time between two samples."""
    wall = spent.busy_s + spent.idle_s
    return 3600.0 * usd / wall if wall else 0.0


def _share(spent: Spent) -> float:
    wall = spent.busy_s + spent.idle_s
    return spent.busy_s / wall if wall else 0.0
