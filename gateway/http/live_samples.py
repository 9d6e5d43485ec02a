"""Samples of the fleet over the last minutes, in memory, for the dashboard's first view. One is taken every few seconds."""

from collections import deque
from collections.abc import Mapping

import msgspec

from backends.wire import Load
from gateway.metering.device_time import DeviceTimes, Spent

MAX_SAMPLES = 180
"""Number of samples: a quarter of an hour at one in five seconds."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. `busy_usd_per_h` and `idle_usd_per_h` cover the time since the previous sample. `running` counts sequences by
    worker."""

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
        """Add a sample.

        The first call only sets the baseline. So does each call until every connected worker has reported its time.
        """
        spent = {name: worker.total for name, worker in self._times.workers.items()}
        new = {name: total.minus(self._last.get(name, Spent())) for name, total in spent.items()}
        all_reported = all(worker.busy_s + worker.idle_s for name, worker in new.items() if loads.get(name))
        if self._last_at and at > self._last_at and (self.samples or (all_reported and any(loads.values()))):
            self.samples.append(
                Sample(
                    at=at,
                    queue=num_queued,
                    runs=num_runs,
                    running={name: load.running if load else 0 for name, load in loads.items()},
                    busy_usd_per_h=sum(
                        _per_hour(worker, worker.charged_usd + worker.unattributed_usd) for worker in new.values()
                    ),
                    idle_usd_per_h=sum(_per_hour(worker, worker.idle_usd) for worker in new.values()),
                    busy_share={name: _share(worker) for name, worker in new.items()},
                )
            )
        self._last, self._last_at = spent, at


def _per_hour(spent: Spent, usd: float) -> float:
    """Return dollars per hour of reported time, which differs slightly from the time between two samples."""
    wall = spent.busy_s + spent.idle_s
    return 3600.0 * usd / wall if wall else 0.0


def _share(spent: Spent) -> float:
    wall = spent.busy_s + spent.idle_s
    return spent.busy_s / wall if wall else 0.0
