"""The values between the stages of preparation, in their order. Each is made once and never changes."""

from typing import NamedTuple

from gateway.metering.budgets import Reservation
from gateway.pipeline.active_request import RequestContext
from gateway.policy.schema import Policy, Route, Slo
from gateway.request import Request
from gateway.runs.identity import Identity
from gateway.runs.registry import Chain, Run
from gateway.scheduling.request_queue import Band


class Identified(NamedTuple):
    """A normalized request with its run. `policy` is in force for the whole request.

    `run` and `chain` are None only for an explanation of a run that is not known.
    """

    policy: Policy
    request: Request
    context: RequestContext
    tenant: str
    identity: Identity
    run: Run | None
    chain: Chain | None

    @property
    def continues_run(self) -> bool:
        """Whether an earlier turn of the run was admitted."""
        return self.run is not None and self.run.turns > 0


class Routed(NamedTuple):
    """The route of a request, its effective SLO and its place in the queue's order. `route.slo` names the SLO's class."""

    route: Route
    slo: Slo
    band: Band


class Reserved(NamedTuple):
    """What a request may use up: `tokens` of the limits on tokens a minute, for each choice, and a reservation for each choice
    from the route's budgets. No reservations without budgets."""

    tokens: int
    reservations: list[Reservation]
