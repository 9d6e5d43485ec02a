"""Attempts of a request: dispatch, failover after a lost worker, escalation of a doubtful answer."""

import time
from collections.abc import Callable

import msgspec

from backends.wire import Finished
from gateway.errors import BadRequest, ContextTooLong, EndedWorkers, HeadwayError, NoWorker, UnsupportedParameter, WorkerLost
from gateway.fleet.token_stream import TokenStream
from gateway.pipeline.active_request import ActiveRequest, ClientGone
from gateway.pipeline.dispatcher import Dispatcher
from gateway.pipeline.recorder import RequestRecorder
from gateway.runs.registry import RunRegistry
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.telemetry.record import LostAttempt

MAX_ATTEMPTS = 4
GRAMMAR_RETRY_S = 5.0
"""Seconds until the turns of other tenants' grammars have moved on: half of the bound of one compilation."""
MAX_BLAMED = 2
"""Workers that a request may end. One may have ended by chance; a third is not tried."""
BLAMED_S = 15.0
"""Seconds from submission in which a lost worker is blamed on its newest request. A grammar compiles within 10 s, and the first
step follows."""
MAX_REFUSALS = 20
"""Refusals after which a request fails. A worker refuses only a submission that crosses its last report."""


class Attempts:
    """`close` records a request without a client, when its last attempt has ended."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        runs: RunRegistry,
        retention: RetentionPublisher,
        recorder: RequestRecorder,
        close: Callable[[ActiveRequest, HeadwayError | None], None],
    ) -> None:
        self.dispatcher, self.runs, self.retention, self.recorder, self._close = dispatcher, runs, retention, recorder, close

    async def start(self, active: ActiveRequest) -> None:
        """Return when the request's stream has its first frame or its end. A worker lost before that is replaced.

        Raises NoWorker, Overloaded, ContextTooLong, BadRequest, EndedWorkers, WorkerLost or ClientGone.
        """
        refusals = 0
        while True:
            stream = await self._attempt(active)
            finished = stream.finished
            if active.gone:
                raise ClientGone("the client left")
            if stream.is_doubtful and await self._escalate(active, stream):
                continue
            finished = stream.finished
            if finished is None or active.first_at is not None or finished.reason in ("stop", "length"):
                return
            if finished.reason == "refused" and finished.error_code == "too_many" and refusals < MAX_REFUSALS:
                refusals += 1
                continue
            if finished.error_code != "worker_lost":
                raise failure_of(finished)
            self._blame(active, stream)
            if active.num_attempts >= MAX_ATTEMPTS:
                raise self.dispatcher.all_workers_lost()
            self._record_lost_attempt(active, stream, "failover")
            active.pending.excluded += (stream.worker,)
            self.recorder.metrics.failovers.inc()

    def _blame(self, active: ActiveRequest, stream: TokenStream) -> None:
        """Count a worker that this request may have ended. Raises EndedWorkers at the second one."""
        if stream.blamed and time.monotonic() - active.submitted_at < BLAMED_S:
            active.num_blamed += 1
        if active.num_blamed >= MAX_BLAMED:
            self._record_lost_attempt(active, stream, "failover")
            raise EndedWorkers(
                f"{active.num_blamed} workers ended right after they received this request: it is not tried again, change it"
            )

    async def _attempt(self, active: ActiveRequest) -> TokenStream:
        pending = active.pending
        pending.waiter = None
        active.placed_at = active.placed_at or time.monotonic()
        try:
            stream = await self.dispatcher.dispatch(pending)
        except NoWorker:
            if pending.excluded:
                raise self.dispatcher.all_workers_lost() from None
            raise
        active.stream = stream
        active.num_attempts += 1
        active.submitted_at = time.monotonic()
        stream.on_begun = lambda: self._attempt_began(active)
        stream.on_finished = lambda finished: self._attempt_ended(active, finished)
        if active.gone:
            stream.abort()
        assert pending.decision
        again = active.num_attempts > 1 or active.is_extra
        self.retention.moved(active.chain, stream.worker)
        self.runs.dispatched(active.chain, model=pending.decision.chosen.model, worker=stream.worker, again=again)
        if active.request.stream:
            while not (stream.begun or stream.finished or active.gone):
                await stream.wait_begun()
        else:
            while not (stream.is_doubtful or stream.finished or active.gone):
                await stream.wait_end()
        if pending.decision.chosen.holdback_tokens:
            active.confidence = stream.confidence
        return stream

    def _attempt_began(self, active: ActiveRequest) -> None:
        active.first_at = time.monotonic()
        self.dispatcher.estimator.observe_ttft(active.pending, active.first_at - active.context.at)

    async def _escalate(self, active: ActiveRequest, stream: TokenStream) -> bool:
        """Restart on the best tier before any frame is sent. Return False when that tier is down, and keep the answer."""
        pending = active.pending
        assert pending.decision
        routing_request = pending.routing_request
        lowest = routing_request.quality.get(pending.decision.chosen.tier, 0.0)
        better = {tier for tier, quality in routing_request.quality.items() if quality > lowest}
        best = max(better, key=lambda tier: routing_request.quality[tier], default=None)
        tiers = self.dispatcher.fleet.policy.tier_by_model()
        candidates = tuple(name for name in routing_request.candidates if tiers.get(name) == best)
        anew = msgspec.structs.replace(routing_request, candidates=candidates, fallbacks=(), escalations={})
        pending.routing_request = anew
        try:
            self.dispatcher.decide(pending)
        except HeadwayError:
            pending.routing_request = msgspec.structs.replace(routing_request, escalations={})
            return False
        stream.abort()
        while stream.finished is None:  # ends within one step: both attempts are charged in order
            await stream.wait_end()
        self._record_lost_attempt(active, stream, "escalated")
        active.first_at, pending.escalated = None, True
        return True

    def _record_lost_attempt(self, active: ActiveRequest, stream: TokenStream, why: str) -> None:
        """Record an attempt that was charged and gives no answer."""
        decision, charge = active.pending.decision, active.charge
        if decision is None or charge is None:
            return
        active.lost.append(
            LostAttempt(
                worker=stream.worker,
                model=decision.chosen.model,
                why=why,
                started_s=active.submitted_at - active.context.at,
                ended_s=time.monotonic() - active.context.at,
                device_s=charge.device_s,
                usd=charge.usd,
                confidence=active.confidence,
            )
        )

    def _attempt_ended(self, active: ActiveRequest, finished: Finished) -> None:
        self.recorder.attempt_ended(active, finished)
        if active.detached:
            self._close(active, active.failure)


def failure_of(finished: Finished) -> HeadwayError:
    """Return the error of an attempt that ended without an answer."""
    message = finished.error or f"the worker ended it: {finished.reason}"
    if finished.error_code == "worker_lost":
        return WorkerLost(f"{message}: try again")
    if finished.error_code == "grammar_busy":
        return NoWorker(message, param=finished.error_param, retry_after_s=GRAMMAR_RETRY_S)
    if finished.error_code == "too_many":
        return NoWorker(f"{message}: try again", retry_after_s=1.0)
    if finished.error_code == "too_long":
        return ContextTooLong(message, param="messages")
    if finished.error_code == "bad_grammar":
        return UnsupportedParameter(message, param=finished.error_param)
    if finished.reason == "refused":
        return BadRequest(message, param=finished.error_param or None)
    return HeadwayError(message)
