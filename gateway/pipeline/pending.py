"""A request between its routing request and its stream, and what decides which seats it may take."""

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
    """One request from its question to its stream. `excluded` are workers that were lost while they had it."""

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
    """By worker, where the form of an answer differs by model; elsewhere the sampling's own holds."""
    escalated: bool = False
    request: Request | None = None
    """What an upstream is sent; workers take the prompts."""
    budgets: tuple[str, ...] = ()
    on_overload: OnOverload = "queue"
    admitted_run: bool = False
    """It continues a run that was let in, and is never refused for a promise."""
    admitted: bool = False
    decision_kept_until: float = -math.inf
    """Its choice, while its worker has no seat or no room."""
    slo_bound_s: float = math.inf
    """How long after its arrival its first token may come, where that was judged."""
    ttft_prediction: tuple[str, float, float] | None = None
    """The worker that was expected to take it, how long after its arrival its first token was expected, and when that was
    predicted; until it came."""
    degraded: bool = False
    alternative_worker: str = ""
    """The worker that keeps the promise which the best one would break."""
    counted_worker: str | None = None
    """The worker for which it counts as waiting."""
    page_hashes: list[Sequence[bytes]] = field(init=False)
    """Of the prompt's pages, once for each way in which some model's tokenizer reads it."""

    def __post_init__(self) -> None:
        self.page_hashes = list({id(prompt.page_hashes): prompt.page_hashes for prompt in self.prompts.values()}.values())

    @property
    def due(self) -> float:
        """From when on half of what it was promised is used up; for batch work, of the time that it may wait at all where that
        is less."""
        most_s = min(self.slo_bound_s, self.deadline - self.arrival) if self.band is Band.BATCH else self.slo_bound_s
        return self.arrival + DUE_SHARE * most_s


class SeatClass(NamedTuple):
    """All of a ticket that says which seats it may have: `judged` where promises are, `late` for batch work that has used up
    half of its time to wait."""

    tenant: str
    line: Band
    has_slo: bool
    is_overdue: bool
