"""The state of one request from parsing to its record. It is closed exactly once."""

import time
from dataclasses import dataclass, field

from backends.wire import Finished
from gateway.errors import HeadwayError
from gateway.fleet.token_stream import TokenStream
from gateway.metering.budgets import Reservation
from gateway.metering.cost import Charge
from gateway.metering.rate_limits import LimitedParty, RateLimitPass
from gateway.pipeline.pending import PendingRequest
from gateway.policy.schema import Slo
from gateway.request import Message, Request
from gateway.runs.identity import Identity
from gateway.runs.registry import Chain, Run
from gateway.telemetry.record import LostAttempt
from gateway.telemetry.trace_context import Trace


class ClientGone(HeadwayError):
    """The client has disconnected. 499 is nginx's status for it, seen in metrics only."""

    status, code = 499, "client_gone"


@dataclass(slots=True, eq=False)
class RequestContext:
    """The facts about a request before its body is received. `at` is in seconds of the monotonic clock."""

    headers: dict[str, str]
    at: float
    wall_ns: int
    route: str
    key_id: str = ""
    limited: tuple[LimitedParty, ...] = ()
    rate_limit_pass: RateLimitPass | None = None
    """Set once the rate limiter admits the request."""
    slo: str = ""
    """The SLO class of a request that is refused before it is tokenized."""

    @staticmethod
    def now(raw: list[tuple[bytes, bytes]], route: str) -> "RequestContext":
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
        return RequestContext(headers, time.monotonic(), time.time_ns(), route)


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """`confidence` is the least of the held-back tokens; `lost` are attempts without an answer.

    `stream` is the present attempt; `num_frames_out` counts its frames sent to the client."""

    id: str
    context: RequestContext
    tenant: str
    request: Request
    identity: Identity
    run: Run
    chain: Chain
    slo: Slo
    pending: PendingRequest
    reservation: Reservation | None = None
    reserved_tokens: int = 0
    """Reserved from the limits on tokens a minute."""
    stream: TokenStream | None = None
    placed_at: float = 0.0
    submitted_at: float = 0.0
    first_at: float | None = None
    gone: bool = False
    detached: bool = False
    """The client does not receive it any more; it is recorded when its sequence ends."""
    failure: HeadwayError | None = None
    closed: bool = False
    is_extra: bool = False
    """A further choice of the same turn."""
    num_attempts: int = 0
    num_blamed: int = 0
    """Workers that were lost right after they received this request."""
    previous_worker: str | None = None
    """The worker that was warm for its chain at its arrival."""
    confidence: float | None = None
    lost: list[LostAttempt] = field(default_factory=list)
    answer: Message | None = None
    finished: Finished | None = None
    charge: Charge | None = None
    trace: Trace | None = None
    device_s: float = 0.0
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    counterfactual_usd: float = 0.0
    cut: tuple[str, ...] = ()
    """Fields of the servers' reports that exceeded their bounds and were cut."""
    asked_digest: str = ""

    @property
    def queue_s(self) -> float:
        """Seconds of waiting in the gateway and in the worker."""
        in_gateway = max(0.0, self.submitted_at - self.placed_at)
        return in_gateway + (self.finished.queue_s if self.finished else 0.0)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.context.at

    def leave(self) -> None:
        """Stop the sequence, or the waiting, of a client that disconnected."""
        self.gone = True
        waiter = self.pending.waiter
        if waiter and not waiter.done():
            waiter.set_exception(ClientGone("the client left"))
        if self.stream:
            self.stream.abort()
            self.stream.wake()
