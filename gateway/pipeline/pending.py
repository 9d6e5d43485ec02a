"""A request between its routing request and its stream, and the class of seats that it may take."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from backends.wire import Grammar, Sampling
from gateway.fleet.token_stream import TokenStream
from gateway.request import Request
from gateway.routing.decision import Decision, RoutingRequest
from gateway.scheduling.admission import DUE_SHARE, OnOverload
from gateway.scheduling.request_queue import Band
from gateway.text.prompt_encoder import Prompt


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request from its routing request to its stream. `excluded` are workers that were lost while serving it."""

    decision_id: str
    routing_request: RoutingRequest
    route: str
    prompts: dict[str, Prompt]
    sampling: Sampling
    tenant: str
    run: str
    chain: str
    band: Band
    attained: float
    arrival: float
    deadline: float
    slo: str = ""
    traceparent: str = ""
    decision: Decision | None = None
    kv_index_sequence: int = -1
    waiter: "asyncio.Future[TokenStream] | None" = None
    excluded: tuple[str, ...] = ()
    grammars: dict[str, Grammar] = field(default_factory=dict)
    """By worker, where the grammar differs by model; elsewhere the sampling's own holds."""
    escalated: bool = False
    request: Request | None = None
    """The request for an upstream; workers take the prompts."""
    budgets: tuple[str, ...] = ()
    on_overload: OnOverload = "queue"
    admitted_run: bool = False
    """A turn of an admitted run is never refused for its SLO."""
    admitted: bool = False
    decision_kept_until: float = -math.inf
    """Monotonic time until which its decision holds, while its worker has no seat or no capacity."""
    slo_bound_s: float = math.inf
    """Seconds after its arrival within which its first token meets its SLO; infinite where no SLO is enforced."""
    ttft_prediction: tuple[str, float, float] | None = None
    """The predicted worker, its seconds from arrival to first token, and the time of the prediction. None after that token."""
    degraded: bool = False
    alternative_worker: str = ""
    """The worker that meets the SLO which the best one would miss."""
    counted_worker: str | None = None
    """The worker in whose queue it counts."""
    page_hashes: list[Sequence[bytes]] = field(init=False)
    """Hashes of the prompt's pages, once for each distinct tokenization."""

    def __post_init__(self) -> None:
        self.page_hashes = list({id(prompt.page_hashes): prompt.page_hashes for prompt in self.prompts.values()}.values())

    @property
    def due(self) -> float:
        """The time at which DUE_SHARE of its SLO is used up; for batch work of its longest wait where that is less."""
        most_s = min(self.slo_bound_s, self.deadline - self.arrival) if self.band is Band.BATCH else self.slo_bound_s
        return self.arrival + DUE_SHARE * most_s


class SeatClass(NamedTuple):
    """The properties of a request that decide which seats it may take. `is_overdue`: batch work past its `due` time."""

    tenant: str
    line: Band
    has_slo: bool
    is_overdue: bool
