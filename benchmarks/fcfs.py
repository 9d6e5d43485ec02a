"""The baseline of `benchmarks.overload`: the same gateway, whose queue is first come, first served whatever was promised.

python -m benchmarks.fcfs POLICY
"""

import os
import sys
from pathlib import Path

from gateway import app
from gateway.policy.load import load_policy
from gateway.scheduling.queue import RunQueue, Waiting
from gateway.server import run
from gateway.settings import read_settings


class FirstCome(RunQueue):
    def _order(self, item: Waiting) -> tuple[int, float, str, bool, float, float, int]:
        return (0, 0.0, "", False, 0.0, item.arrival, item.request)


def main() -> None:
    # The composition root makes the queue, and no policy asks for this order.
    app.RunQueue = FirstCome  # type: ignore[attr-defined]
    path = Path(sys.argv[1])
    run(load_policy(path, os.environ), read_settings(os.environ), os.environ, path=path)


if __name__ == "__main__":
    main()
