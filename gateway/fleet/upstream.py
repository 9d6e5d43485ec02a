"""Client of one OpenAI-compatible server, with a worker's interface: every submit's stream gets exactly one `Finished`.

A failed attempt is retried until the first event was passed on. A later failure ends the answer.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from msgspec import structs

from backends.wire import Finished, FinishReason, Piece, Sampling
from gateway.errors import WorkerLost
from gateway.fleet import bounds
from gateway.fleet.approx_kv import ApproxKvIndex
from gateway.fleet.circuit_breaker import CircuitBreaker
from gateway.fleet.credits import Credits
from gateway.fleet.token_stream import TokenStream
from gateway.fleet.upstream_request import TokenCounts, body_of, lacks, num_chars
from gateway.fleet.upstream_response import Lines, Malformed, UpstreamResponse, Usage, error_text
from gateway.parsers.event_codec import encode_event
from gateway.parsers.events import CallStart, Event
from gateway.policy import schema
from gateway.policy.worker_rates import WorkerRates
from gateway.request import Request
from gateway.routing.decision import WorkerView
from gateway.runtime.redaction import redacted
from gateway.scheduling.latency_model import LatencyPredictor
from gateway.text.prompt_encoder import Prompt

GUESS = WorkerRates(overhead_s=0.5, prefill_s_per_token=5e-5, tpot_s=0.02, decode_device_s_per_token=0.02)
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
"""Seconds of backoff. A server that asks for a longer pause than the last is not retried."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
ENOUGH_TOKENS = 2**62

log = logging.getLogger("headway.upstream")


class _RequestRejected(Exception):
    """The server rejected the request as invalid."""


class _Failed(Exception):
    """The server failed. Retry after `retry_s` seconds; None means that a retry cannot help."""

    def __init__(self, message: str, retry_s: float | None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


@dataclass(slots=True, eq=False)
class _Job:
    """One submitted request. `begun` is set at the first event that is passed on."""

    stream: TokenStream
    body: bytes
    chain: str
    chars: int
    prompt_tokens: int
    max_tokens: int
    traceparent: str
    started_at: float
    first_at: float | None = None
    answering: bool = False
    begun: bool = False
    num_pieces: int = 0
    aborted: bool = False
    task: "asyncio.Task[Finished] | None" = None


class Upstream:
    """Client of one upstream. `changed` is called when its capacity or health may have changed, `excess` with the fields of a
    usage that were cut to their bounds."""

    def __init__(
        self,
        name: str,
        policy: schema.Upstream,
        *,
        changed: Callable[[], None],
        excess: Callable[[str, Sequence[str]], None] = lambda name, fields: None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name, self.policy = name, policy
        self.predictor = LatencyPredictor(GUESS)
        self.breaker = CircuitBreaker(failures=policy.failures, cooldown_s=policy.cooldown_s)
        self.cache = ApproxKvIndex(policy.cache_s)
        self.counts = TokenCounts()
        self.credits = Credits()
        self.credits.sequences, self.credits.tokens = policy.concurrency, ENOUGH_TOKENS
        self.problem = "not started"
        self.num_failures = 0
        self._changed, self._excess, self._clock, self._jitter = changed, excess, clock, jitter
        self._jobs: dict[int, _Job] = {}
        self._next_request = 0
        self._session: aiohttp.ClientSession | None = None

    @property
    def healthy(self) -> bool:
        return self._session is not None and self.breaker.may_try(self._clock())

    @property
    def num_running(self) -> int:
        """Return the number of requests in flight."""
        return len(self._jobs)

    def start(self) -> None:
        headers = {"authorization": f"Bearer {self.policy.key}"} if self.policy.key else {}
        times = self.policy.timeouts
        self._session = aiohttp.ClientSession(
            headers={**headers, "content-type": "application/json"},
            connector=aiohttp.TCPConnector(limit=self.policy.concurrency),
            timeout=aiohttp.ClientTimeout(total=times.total_s, sock_connect=times.connect_s),
        )
        self.problem = ""

    async def stop(self) -> None:
        session, self._session, self.problem = self._session, None, "the gateway is stopping"
        tasks = [job.task for job in self._jobs.values() if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session:
            await session.close()

    def unsupported_param(self, request: Request) -> str | None:
        return lacks(request)

    def prompt(self, request: Request, chain: str) -> Prompt:
        """Return a prompt with estimated tokens. Its only page hash is the chain's name, which the cache estimate is kept
        by."""
        return Prompt(b"", self.counts.count(num_chars(request)), [chain.encode()])

    def cached_tokens(self, chain: bytes) -> int:
        return self.cache.expect(chain.decode(), self._clock())

    def view(self, now: float) -> WorkerView:
        view = self.predictor.view(
            worker=self.name,
            model=self.policy.model,
            tier=self.policy.tier,
            healthy=self.healthy,
            max_context=self.policy.context_tokens,
            usd_per_s=0.0,
            max_sequences=self.policy.concurrency,
            now=now,
        )
        return structs.replace(view, prices=self.policy.prices)

    def health(self) -> dict[str, Any]:
        """Return a worker's health fields and those of an upstream. The address is left out: the report is public."""
        return {
            "name": self.name,
            "model": self.policy.model,
            "tier": self.policy.tier,
            "device": "upstream",
            "up": self.healthy,
            "problem": "" if self.healthy else self.problem,
            "restarts": 0,
            "usd_per_s": 0.0,
            "hello": None,
            "load": None,
            "rates": self.predictor.rates._asdict(),
            "running": self.num_running,
            "breaker": self.breaker.state,
            "failures": self.breaker.failures,
            "cached_share": self.cache.share,
            "prices": structs.asdict(self.policy.prices),
        }

    def submit(
        self, request: Request, sampling: Sampling, *, prompt_tokens: int, chain: str = "", traceparent: str = ""
    ) -> TokenStream:
        """Send a request. Raises WorkerLost while the circuit breaker is open or the client is stopped."""
        if not self.healthy:
            raise WorkerLost(f"upstream {self.name} is unavailable: {self.problem}")
        self._next_request += 1
        number = self._next_request
        stream = TokenStream(self.name, number, self._abort)
        body = body_of(request, self.policy.served_as or self.policy.model, sampling)
        chars = num_chars(request)
        job = self._jobs[number] = _Job(
            stream, body, chain, chars, prompt_tokens, sampling.max_tokens, traceparent, self._clock()
        )
        self.credits.submit(number, prompt_tokens)
        self.predictor.submitted(number, 0)  # other requests there delay none of ours
        self.breaker.trying()
        job.task = asyncio.create_task(self._serve(job), name=f"upstream {self.name}")
        job.task.add_done_callback(lambda task: self._finish(job, task))
        return stream

    def _abort(self, number: int) -> None:
        if (job := self._jobs.get(number)) and job.task:
            job.aborted = True
            job.task.cancel()

    def _finish(self, job: _Job, task: "asyncio.Task[Finished]") -> None:
        """Account and end a job, also one that was cancelled before it began."""
        if task.cancelled():
            self.breaker.gave_up()
            finished = self._finished(job, "abort") if job.aborted else self._lost(job, self.problem)
        elif error := task.exception():
            log.error("upstream %s: a request failed unexpectedly", self.name, exc_info=error)
            self.breaker.gave_up()
            finished = self._lost(job, "an internal error of the gateway, see its log")
        else:
            finished = task.result()
        number = job.stream.request
        del self._jobs[number]
        self.credits.finish(number)
        took_s = finished.prefill_s + finished.decode_s
        self.predictor.observe_finished(structs.replace(finished, device_s=took_s, prefill_device_s=finished.prefill_s))
        job.stream.end(finished)
        self._changed()

    async def _serve(self, job: _Job) -> Finished:
        delay_s = FIRST_RETRY_S
        for tries_left in range(self.policy.retries, -1, -1):
            job.started_at = self._clock()
            try:
                answer = await self._try(job)
            except _RequestRejected as error:
                self.breaker.succeeded()  # a rejection shows that the server is up
                too_long = "context length" in str(error) or "context_length" in str(error)
                code = "too_long" if too_long else "refused"
                return self._finished(job, "refused", error=f"{self.name}: {error}", error_code=code)
            except (_Failed, Malformed, aiohttp.ClientError, OSError, ValueError) as error:
                problem = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
                self._failed(problem)
                retry_s = error.retry_s if isinstance(error, _Failed) else 0.0
                pause_s = None if retry_s is None else max(retry_s, delay_s * (0.5 + self._jitter()))
                if job.begun or not tries_left or pause_s is None or pause_s > LAST_RETRY_S or not self.breaker_is_closed:
                    return self._lost(job, problem)
                await asyncio.sleep(pause_s)
                delay_s *= 2
            else:
                self.breaker.succeeded()
                self.problem = ""
                return self._done(job, answer)
        raise AssertionError("the last attempt returns")

    @property
    def breaker_is_closed(self) -> bool:
        return self.breaker.state == "closed"

    def _failed(self, problem: str) -> None:
        was_closed, self.problem = self.breaker_is_closed, redacted(problem, [self.policy.key] if self.policy.key else [])
        self.num_failures += 1
        self.breaker.failed(self._clock())
        if was_closed and not self.breaker_is_closed:
            log.warning("upstream %s is not tried for %g s: %s", self.name, self.policy.cooldown_s, problem)
            self._changed()

    async def _try(self, job: _Job) -> UpstreamResponse:
        """Make one attempt. Raises _RequestRejected or _Failed for an error status, Malformed for an invalid body,
        TimeoutError."""
        assert self._session
        times, loop = self.policy.timeouts, asyncio.get_running_loop()
        url = self.policy.url.rstrip("/") + "/chat/completions"
        headers = {"traceparent": job.traceparent} if job.traceparent else {}
        async with (
            asyncio.timeout(times.connect_s + times.first_s) as until,
            self._session.post(url, data=job.body, headers=headers, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise await _failure(response)
            job.answering = True
            answer, lines, size, done = UpstreamResponse(), Lines(), 0, False
            streamed = response.content_type == "text/event-stream"
            whole: list[bytes] = []
            async for data in response.content.iter_any():
                size += len(data)
                if size > MAX_ANSWER_BYTES:
                    raise Malformed(f"its answer is over {MAX_ANSWER_BYTES:,} bytes")
                if not streamed:
                    whole.append(data)
                    continue
                for line in lines.feed(data):
                    done = done or line == b"[DONE]"
                    if not done:
                        self._pass_on(job, answer.take(line))
                if job.begun:
                    until.reschedule(loop.time() + times.idle_s)
                if done:
                    break
            if not streamed:
                self._pass_on(job, answer.take(b"".join(whole)))
        if answer.finish is None:
            raise Malformed("its answer was cut off")
        return answer

    def _pass_on(self, job: _Job, events: list[Event]) -> None:
        if not events:
            return
        if not job.begun:
            job.begun, job.first_at = True, self._clock()
        num_tokens = sum(not isinstance(event, CallStart) for event in events)
        job.num_pieces += num_tokens
        job.stream.push(Piece(job.stream.request, "".join(map(encode_event, events)), num_tokens))

    def _done(self, job: _Job, answer: UpstreamResponse) -> Finished:
        finished = self._finished(job, "length" if answer.finish == "length" else "stop")
        if answer.usage is None:
            return finished
        usage = self._bounded(job, answer.usage)
        if not usage.prompt_tokens:
            return finished
        if not job.stream.cut:
            self.counts.learn(job.chars, usage.prompt_tokens)
            self.cache.learn(job.chain, prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens, now=self._clock())
        return structs.replace(
            finished,
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=usage.cached_tokens,
            num_output_tokens=usage.output_tokens,
        )

    def _bounded(self, job: _Job, reported: Usage) -> bounds.Usage:
        """Return the usage within what the request allows. An excess is logged, counted, and marked in the request's row."""
        usage, job.stream.cut = bounds.cut_usage(
            bounds.Usage(reported.prompt_tokens, reported.cached, reported.completion_tokens),
            sent_bytes=len(job.body),
            context_tokens=self.policy.context_tokens,
            max_tokens=job.max_tokens,
        )
        if job.stream.cut:
            log.warning("upstream %s: its usage exceeds what the request allows: %s", self.name, ", ".join(job.stream.cut))
            self._excess(self.name, job.stream.cut)
        return usage

    def _lost(self, job: _Job, problem: str) -> Finished:
        error = f"upstream {self.name} failed: {problem}"
        return self._finished(job, "error", error=error, error_code="worker_lost")

    def _finished(self, job: _Job, reason: FinishReason, *, error: str = "", error_code: str = "") -> Finished:
        """Return the end of a job with our token estimates; 0 prompt tokens if the server never began to answer."""
        now = self._clock()
        first_at = now if job.first_at is None else job.first_at
        return Finished(
            request=job.stream.request,
            reason=reason,
            error=redacted(error, [self.policy.key] if self.policy.key else []),
            error_code=error_code,
            num_prompt_tokens=job.prompt_tokens if job.answering else 0,
            num_output_tokens=min(job.num_pieces, job.max_tokens),
            prefill_s=max(0.0, first_at - job.started_at),
            decode_s=max(0.0, now - first_at),
        )


async def _failure(response: aiohttp.ClientResponse) -> Exception:
    status = response.status
    message = error_text(await response.content.read(MAX_ERROR_BYTES))
    if status in (400, 413, 422):
        return _RequestRejected(message)
    if status in (401, 403):  # the body is left out: it may quote the key
        return _Failed(f"status {status}: it does not accept our API key", None)
    may_retry = status in (408, 409, 425, 429) or status >= 500
    after = response.headers.get("retry-after", "")
    retry_s = (float(after) if after.isdecimal() else 0.0) if may_retry else None
    return _Failed(f"status {status}: {message}", retry_s)
