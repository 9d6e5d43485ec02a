"""A request between its routing request and its stream."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.wire import Grammar, Sampling
from gateway.fleet.token_stream import TokenStream
from gateway.request import Request
from gateway.routing.decision import Decision, RoutingRequest
from gateway.scheduling.admission import OnOverload
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
    ttft_prediction: tuple[str, float, float] | None = None
    """The predicted worker, its seconds from arrival to first token, and the time of the prediction. None after that token."""
    degraded: bool = False
    alternative_worker: str = ""
    """The worker that meets the SLO which the best one would miss."""
    counted: tuple[str | None, int] = (None, 0)
    """The worker for which its uncached tokens count while it waits, and their number."""
    page_hashes: list[Sequence[bytes]] = field(init=False)
    """Hashes of the prompt's pages, once for each distinct tokenization."""

    def __post_init__(self) -> None:
        self.page_hashes = list({id(prompt.page_hashes): prompt.page_hashes for prompt in self.prompts.values()}.values())
