"""Composition root of the gateway: all its parts, and the Litestar application in front of them."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from litestar import Litestar

from gateway.api.chat_dialect import ChatDialect
from gateway.api.completions import CompletionsDialect
from gateway.api.dialect import Dialect
from gateway.api.messages_dialect import MessagesDialect
from gateway.api.response_store import ResponseStore
from gateway.api.responses_dialect import ResponsesDialect
from gateway.fleet.fleet import Fleet
from gateway.http.auth import CurrentKeys, Keys
from gateway.http.body import BodyBudget
from gateway.http.generate import GenerateEndpoint, OpenResponses
from gateway.http.live_samples import LiveSamples
from gateway.http.routes import error_handlers, route_handlers
from gateway.http.services import Services
from gateway.ledger.key_store import Read, last_change, stored_keys
from gateway.ledger.ledger import Ledger, MemoryLedger, SqliteLedger
from gateway.ledger.rows import KeyRow, KeyUseRow
from gateway.metering.budget_history import restore
from gateway.metering.budgets import Budgets
from gateway.metering.device_time import DeviceTimes
from gateway.metering.rate_limits import RateLimiter
from gateway.pipeline.dispatcher import Dispatcher
from gateway.pipeline.gauges import background_gauges, excess_gauges, request_gauges, upstream_gauges, worker_gauges
from gateway.pipeline.pipeline import Pipeline
from gateway.pipeline.prepare import Judge
from gateway.pipeline.recorder import RequestRecorder
from gateway.policy.schema import Policy
from gateway.request import Request
from gateway.routing.escalation import Escalation
from gateway.routing.quality import QualityModel, top_only
from gateway.runs.registry import RunRegistry
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.runtime.free_memory import give_back
from gateway.runtime.turn_thread import TurnThread
from gateway.scheduling.latency_model import OutputLengths
from gateway.scheduling.request_queue import COLD_AFTER_S, RequestQueue
from gateway.scheduling.retention import Retention
from gateway.settings import Settings
from gateway.telemetry.metrics import Gauge, Metrics
from gateway.telemetry.span_export import open_spans
from gateway.telemetry.tracing import SpanWriter
from gateway.text.prompt_encoder import PromptEncoder

CLEANUP_EVERY_S = 5.0
REFRESHES_PER_CLEANUP = 10
"""Retention updates per cleanup interval: a small worker's cache turns over within seconds."""
DEVICE_ROWS_EVERY_S = 30.0
KEYS_EVERY_S = 1.0
"""Polling interval of the key store: a revoked key is rejected within it."""
MAX_WAITING_REPORTS = 16
"""Reports of one tenant that wait: two pages of the dashboard, which asks for up to six at a time."""
FINAL_EVENTS_S = 1.0
"""Time for cut-off answers to send their error event. It runs out only if a client does not read."""

log = logging.getLogger("headway.app")


class Gateway:
    """One gateway with all its parts. Its owner calls `start` and `stop`; `build_app` does so in the app's lifespan."""

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        fleet: Fleet,
        *,
        ledger: Ledger | None = None,
        spans: SpanWriter | None = None,
    ) -> None:
        self.policy, self.settings, self.fleet = policy, settings, fleet
        self.keys = CurrentKeys(Keys(policy))
        self._stored_keys: list[KeyRow] = []
        self._started_at = time.time()
        limits = policy.limits
        self.runs = RunRegistry(limits.max_runs, limits.run_idle_s)
        self.retention = RetentionPublisher(Retention(limits.max_runs), fleet.set_retention, fleet.horizon_s)
        self.queue = _queue(policy)
        self.dispatcher = Dispatcher(fleet, self.queue, clock=time.monotonic)
        self.metrics = Metrics(self.gauges)
        self.spans = spans or open_spans(settings.spans, sample=settings.span_sample, background=fleet.background)
        self.ledger = ledger or _ledger(settings)
        lengths, capture = OutputLengths(), settings.capture_content
        self.prompt_encoder = PromptEncoder(capture=capture)
        self.budgets = Budgets(policy.budgets)
        self.rates = RateLimiter()
        self.recorder = RequestRecorder(
            fleet, self.runs, lengths, self.metrics, self.spans, self.ledger, self.budgets, self.rates, capture=capture
        )
        self.device_times = DeviceTimes(fleet.usd_per_s, {name: worker.model for name, worker in policy.workers.items()})
        self.live_samples = LiveSamples(self.device_times)
        judge, escalations = _judge(policy)
        self.pipeline = Pipeline(
            policy,
            fleet,
            self.dispatcher,
            self.runs,
            self.retention,
            self.prompt_encoder,
            self.recorder,
            lengths,
            judge,
            escalations,
        )
        self.open_responses = OpenResponses()
        self.body_budget = BodyBudget(limits.max_body_bytes, max(limits.max_body_bytes, limits.max_queued_bytes))
        self.responses = ResponseStore(self.ledger, time.time)
        self.reports = TurnThread("reports", max_waiting=MAX_WAITING_REPORTS)
        self._key_thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        """No other work may delay the poll of the key store."""
        self.parsing = TurnThread(
            "large bodies",
            max_waiting=limits.max_queued_requests,
            max_bytes=max(4 * limits.max_body_bytes, limits.max_queued_bytes),
        )
        endpoints = self._endpoints()
        self.chat = endpoints["/v1/chat/completions"]
        self.services = self._services(endpoints)
        self._tasks: list[asyncio.Task[None]] = []
        fleet.lost = self.runs.worker_lost

    def _endpoints(self) -> dict[str, GenerateEndpoint]:
        dialects: dict[str, Dialect] = {
            "/v1/chat/completions": ChatDialect(),
            "/v1/completions": CompletionsDialect(),
            "/v1/responses": ResponsesDialect(self.responses),
            "/v1/messages": MessagesDialect(),
        }
        return {
            route: GenerateEndpoint(
                self.pipeline, self.keys, dialect, self.open_responses, self.body_budget, self.parsing, route=route
            )
            for route, dialect in dialects.items()
        }

    def _services(self, endpoints: dict[str, GenerateEndpoint]) -> Services:
        return Services(
            pipeline=self.pipeline,
            fleet=self.fleet,
            queue=self.queue,
            runs=self.runs,
            keys=self.keys,
            rate_limits=self.rates,
            ledger=self.ledger,
            metrics=self.metrics,
            live_samples=self.live_samples,
            body_budget=self.body_budget,
            responses=self.responses,
            reports=self.reports,
            parsing=self.parsing,
            endpoints=endpoints,
        )

    def apply(self, policy: Policy) -> None:
        """Use another policy for new requests; requests in flight end under the old one.

        The parts in `reload.FIXED` must be unchanged. Raises ArtefactError or ValueError, and then changes nothing.
        """
        judge, escalations = _judge(policy)
        keys = Keys(policy, self._stored_keys)
        if not keys.required and self.keys.required:
            raise ValueError("the policy no longer has API keys: removing the last one needs a restart")
        self.policy = policy
        self.fleet.take_policy(policy)
        self.pipeline.apply(policy, judge, escalations)
        self._set_keys(keys)
        self.budgets.limit(policy.budgets)
        self.recorder.record_policy(policy, time.time())
        self.queue.set_weights({name: tenant.weight for name, tenant in policy.tenants.items()})
        self.dispatcher.seats.take_policy()

    def start(self) -> None:
        restore(self.budgets, self.policy, self.ledger.read, time.time())
        self.fleet.start()
        self.recorder.record_policy(self.policy, time.time())
        self._tasks.append(self.fleet.background.start("cleanup", self._clean_up))
        if isinstance(self.ledger, SqliteLedger):  # no other process can write into a ledger in memory
            self._set_stored_keys(stored_keys(self.ledger.read_keys))
            self._tasks.append(self.fleet.background.start("keys", partial(self._follow_keys, self.ledger.read_keys)))

    def _set_keys(self, keys: Keys) -> None:
        self._record_key_uses()
        self.keys.replace(keys)

    def _set_stored_keys(self, stored: list[KeyRow]) -> None:
        self._stored_keys = stored
        self._set_keys(Keys(self.policy, stored))

    async def _follow_keys(self, read: Read) -> None:
        """Poll the key store for changes made by `headway keys`. While it cannot be read, the previous keys stay in force."""
        changed, loop = max((row.changed for row in self._stored_keys), default=0), asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEYS_EVERY_S)
            if (now := await loop.run_in_executor(self._key_thread, last_change, read)) != changed:
                self._set_stored_keys(await loop.run_in_executor(self._key_thread, stored_keys, read))
                changed = now

    def _record_key_uses(self) -> None:
        for id, at in self.keys.take_uses().items():
            self.ledger.record(KeyUseRow(id=id, at=at))

    async def _clean_up(self) -> None:
        """Publish retention scores, end idle runs, and record device time, key uses and live samples, for ever."""
        recorded_at, num_trimmed = time.monotonic(), 0
        while True:
            for _ in range(REFRESHES_PER_CLEANUP):
                await asyncio.sleep(CLEANUP_EVERY_S / REFRESHES_PER_CLEANUP)
                self.retention.refresh(time.monotonic())
            for run in self.runs.expire(time.monotonic()):
                self.pipeline.forget(run)
                self.recorder.run_ended(run)
            self.observe_devices()
            self._record_key_uses()
            loads = {name: client.load for name, client in self.fleet.clients.items()}
            self.live_samples.sample(time.time(), loads, num_queued=len(self.queue), num_runs=len(self.runs))
            if (now := time.monotonic()) >= recorded_at + DEVICE_ROWS_EVERY_S:
                recorded_at = now
                self.record_device_time()
                num_trimmed = await self._give_back_memory(num_trimmed)

    async def _give_back_memory(self, num_trimmed: int) -> int:
        """Give memory back to the system if large bodies were parsed since `num_trimmed` of them. Return their number."""
        if self.parsing.num_served != num_trimmed:
            await asyncio.to_thread(give_back)
        return self.parsing.num_served

    def observe_devices(self) -> None:
        """Add the device time of the workers' last load reports."""
        for name, client in self.fleet.clients.items():
            if client.load:
                self.device_times.observe(name, client.load, time.monotonic())

    def record_device_time(self) -> None:
        for row in self.device_times.rows(time.time()):
            self.ledger.record(row)

    async def drain(self, grace_s: float) -> None:
        """Reject new requests and wait `grace_s` seconds for running answers. Then close the links: each remaining answer gets
        an error event and is accounted."""
        self.pipeline.preparer.stopping = True
        await self._idle(grace_s)
        await self.fleet.disconnect()
        await self._idle(FINAL_EVENTS_S)

    async def _idle(self, at_most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.open_responses.idle.wait(), at_most_s)

    async def stop(self) -> None:
        """Stop all parts. Running sequences end with their links and are accounted."""
        for task in self._tasks:
            task.cancel()
        self._record_key_uses()
        self.observe_devices()
        self.record_device_time()
        await self.fleet.stop()
        for run in (*self.runs.expire(time.monotonic()), *self.runs.all()):
            self.recorder.run_ended(run)
        self.reports.close()
        self.parsing.close()
        self._key_thread.shutdown(wait=True, cancel_futures=True)
        self.prompt_encoder.close()
        self.spans.close()
        self.ledger.close()

    def gauges(self) -> Iterable[Gauge]:
        """Yield the gauges, computed at each scrape."""
        self.observe_devices()
        yield Gauge("headway_start_time_seconds", "Unix time of the start.", {}, self._started_at)
        yield from request_gauges(self.dispatcher, self.runs, self.ledger, self.budgets, now=time.monotonic())
        yield from worker_gauges(self.fleet, self.device_times)
        yield from upstream_gauges(self.fleet)
        yield from excess_gauges(self.fleet)
        yield from background_gauges(self.fleet.background, self.ledger)


def build_app(gateway: Gateway) -> Litestar:
    """Return the application, which starts the gateway at startup and stops it after the last request."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    return Litestar(
        route_handlers=route_handlers(gateway.services),
        lifespan=[lifespan],
        exception_handlers=error_handlers(),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _queue(policy: Policy) -> RequestQueue:
    limits = policy.limits
    return RequestQueue(
        limits.max_queued_requests,
        {name: tenant.weight for name, tenant in policy.tenants.items()},
        # At half the longest wait, so that a cold request is served before it times out.
        cold_after_s=min(COLD_AFTER_S, 0.5 * limits.max_queue_s),
        max_tokens=limits.max_queued_tokens,
        max_bytes=limits.max_queued_bytes,
    )


def _ledger(settings: Settings) -> Ledger:
    return SqliteLedger(settings.ledger, keep_days=settings.ledger_days) if settings.ledger else MemoryLedger()


def _judge(policy: Policy) -> tuple[Judge, dict[str, Escalation]]:
    """Return the quality estimator and the escalation rule of each tier. Without an artefact only the top tier qualifies."""
    if policy.router and not Path(policy.router).exists():
        log.warning(
            "%s is missing: the best tier answers all requests until `headway router train` has written it", policy.router
        )
    elif policy.router:
        model = QualityModel.load(Path(policy.router))
        return lambda request: model.judge(request.messages, request.tools), model.escalations()
    quality = top_only(policy.tiers)

    def always_top(request: Request) -> dict[str, float]:
        return quality

    return always_top, {}
