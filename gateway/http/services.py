"""The parts of a gateway that its endpoints use. The app makes them once; none is replaced afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.api.response_store import ResponseStore
from gateway.fleet.fleet import Fleet
from gateway.http.auth import CurrentKeys
from gateway.http.body import BodyBudget
from gateway.http.generate import GenerateEndpoint
from gateway.http.live_samples import LiveSamples
from gateway.ledger.ledger import Ledger, SqliteLedger
from gateway.metering.rate_limits import RateLimiter
from gateway.pipeline.pipeline import Pipeline
from gateway.policy.schema import Policy
from gateway.runs.registry import RunRegistry
from gateway.runtime.turn_thread import TurnThread
from gateway.scheduling.request_queue import RequestQueue
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.span_export import SPANS


@dataclass(frozen=True, slots=True)
class Services:
    """Shared parts. `endpoints` are the generating ones, by path."""

    pipeline: Pipeline
    fleet: Fleet
    queue: RequestQueue
    runs: RunRegistry
    keys: CurrentKeys
    rate_limits: RateLimiter
    ledger: Ledger
    metrics: Metrics
    live_samples: LiveSamples
    body_budget: BodyBudget
    responses: ResponseStore
    reports: TurnThread
    parsing: TurnThread
    endpoints: Mapping[str, GenerateEndpoint]

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.pipeline.policy

    def missing(self) -> dict[str, str]:
        """Return the workers and background tasks without which the gateway is not ready, with the reason."""
        missing = self.fleet.missing()
        missing |= {name: problem for name, problem in self.fleet.background.problems.items() if name != SPANS}
        if isinstance(self.ledger, SqliteLedger) and self.ledger.problem:
            missing["ledger"] = self.ledger.problem
        return missing

    def degraded(self) -> dict[str, str]:
        """Return the parts that have failed and that no request needs, with the reason."""
        return {name: problem for name, problem in self.fleet.background.problems.items() if name == SPANS}
