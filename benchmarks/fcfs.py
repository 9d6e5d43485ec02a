"""The baseline of `benchmarks.overload`: the same gateway, whose queue is first come, first served whatever was promised.

python -m benchmarks.fcfs POLICY
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gateway import app
from gateway.policy.load import load_policy
from gateway.scheduling.queue import RunQueue, Waiting
from gateway.server import run
from gateway.settings import read_settings


class FirstCome(RunQueue):
    def _overdue(self, now: float) -> list[Waiting]:
        return []

    def _due(self, now: float) -> list[Waiting]:
        return []

    def _in_order(self) -> Iterator[Waiting]:
        return iter(sorted(self._waiting.values(), key=lambda one: (one.arrival, one.request)))


def main() -> None:
    # The composition root makes the queue, and no policy asks for this order.
    app.RunQueue = FirstCome  # type: ignore[attr-defined]
    path = Path(sys.argv[1])
    run(load_policy(path, os.environ), read_settings(os.environ), os.environ, path=path)


if __name__ == "__main__":
    main()
