"""Sends requests over HTTP on schedule, whether or not earlier ones were answered: slow responses delay no request.

Every time counts from the scheduled time of sending, so that a late sender hides no delay.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec

_THRESHOLDS = (50_000, 50, 1_000)
"""Garbage collector thresholds under load: young garbage is collected, old objects are not visited."""

Clock = Callable[[], float]
T = TypeVar("T")


class Response(NamedTuple):
    """Result of one request. Times are seconds after its scheduled time: `lag_s` to sending, `first_s` to the first text or
    call, `end_s` to the end.

    `status` is HTTP's, 0 without a response. `error` is a code or reason, "" on success. `retry_after_s` comes from a
    rejection.
    """

    status: int
    lag_s: float
    end_s: float
    first_s: float | None = None
    error: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.error

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds between two output tokens; None for fewer than two."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.output_tokens - 1)


async def open_loop(
    times_s: Sequence[float], send: Callable[[int, float], Awaitable[T]], *, clock: Clock = time.perf_counter
) -> list[T]:
    """Call `send(number, due)` at each time, in order, and return when all calls have returned. `due` is on `clock`.

    If one raises, or this is cancelled, the others are cancelled.
    """
    with _seldom_collecting():
        began = clock()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, at_s in enumerate(times_s):
                due = began + at_s
                if (left := due - clock()) > 0:
                    await asyncio.sleep(left)
                tasks.append(group.create_task(_sent(send, number, due)))
        return [task.result() for task in tasks]


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Avoid full collections. One visits all answers so far and stops sending and receiving for a tenth of a second, which
    inflates all latencies."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _sent(send: Callable[[int, float], Awaitable[T]], number: int, due: float) -> T:
    return await send(number, due)


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """Open a session without a limit of connections: a pool's limit would delay requests unnoticed."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def chat(
    http: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    *,
    due: float | None = None,
    clock: Clock = time.perf_counter,
) -> Response:
    """Send one streamed chat completion to `url` (up to /chat/completions), timed from `due`. Errors of the endpoint are never
    raised."""
    began = clock()
    due = began if due is None else due
    reading = _AnswerReader(clock, due, began - due)
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with http.post(url, json=asked, headers=headers) as answer:
            reading.status = answer.status
            if answer.status != 200:
                return reading.refused(await answer.read(), answer.headers)
            async for line in answer.content:
                reading.line(line)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        reading.error = "timeout" if isinstance(error, TimeoutError) else type(error).__name__
    return reading.seen()


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[Any] | None = None
    reasoning_content: str | None = None

    @property
    def says(self) -> bool:
        return bool(self.content or self.tool_calls or self.reasoning_content)


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Fault(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Fault | None = None


_chunks = msgspec.json.Decoder(_Chunk)


class _AnswerReader:
    """Reader of one streamed answer."""

    def __init__(self, clock: Clock, due: float, lag_s: float) -> None:
        self.status, self.error = 0, ""
        self._clock, self._due, self._lag_s = clock, due, lag_s
        self._first_s: float | None = None
        self._finish, self._usage, self._pieces = "", _Usage(), list[str]()
        self._done = False

    def line(self, line: bytes) -> None:
        if line.startswith(b"data: [DONE]"):
            self._done = True
        if not line.startswith(b"data: {"):
            return
        chunk = _chunks.decode(line[6:])
        if chunk.error:
            self.error = str(chunk.error.code or chunk.error.type or "error")
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
            if self._first_s is None and (choice.delta.says or choice.finish_reason):
                self._first_s = self._clock() - self._due
            if choice.delta.content:
                self._pieces.append(choice.delta.content)

    def refused(self, body: bytes, headers: Mapping[str, str]) -> Response:
        try:
            fault = msgspec.json.decode(body, type=_Chunk).error
        except msgspec.MsgspecError:
            fault = None
        self.error = str((fault and (fault.code or fault.type)) or f"http_{self.status}")
        retry_after_ms = headers.get("retry-after-ms", "")
        return self.seen()._replace(retry_after_s=float(retry_after_ms) / 1000 if retry_after_ms.isdigit() else None)

    def seen(self) -> Response:
        if self.status == 200 and not self.error and not self._done and not self._finish:
            self.error = "cut_off"
        details = self._usage.prompt_tokens_details
        return Response(
            status=self.status,
            lag_s=self._lag_s,
            end_s=self._clock() - self._due,
            first_s=self._first_s,
            error=self.error,
            finish=self._finish,
            prompt_tokens=self._usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            output_tokens=self._usage.completion_tokens,
            text="".join(self._pieces),
            retry_after_s=None,
        )
