"""`python -m benchmarks.tracing_off POLICY`: a gateway without telemetry, the "off" of benchmarks/tracing.py."""

import os
import sys
from pathlib import Path

from gateway.app import Gateway
from gateway.commands.serve import run
from gateway.policy.load import load_policy
from gateway.settings import read_settings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import RequestRecord
from gateway.telemetry.tracing import NoSpans


class NoLedger:
    """A ledger that stores nothing."""

    def record(self, row: object) -> bool:
        return True

    def read(self, query: str, values: object = ()) -> list[dict[str, object]]:
        return []

    def close(self) -> None:
        pass


def _nothing(metrics: Metrics, record: RequestRecord) -> None:
    pass


def main() -> None:
    Metrics.record = _nothing  # type: ignore[method-assign, assignment]
    built = Gateway.__init__

    def build(self: Gateway, *arguments: object, **options: object) -> None:
        built(self, *arguments, **{**options, "ledger": NoLedger(), "spans": NoSpans()})  # type: ignore[arg-type]

    Gateway.__init__ = build  # type: ignore[method-assign]
    run(load_policy(Path(sys.argv[1]), os.environ), read_settings(os.environ), os.environ)


if __name__ == "__main__":
    main()
