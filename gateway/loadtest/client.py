"""Requests over HTTP as a schedule says, whether or not earlier ones are answered: what is slow makes nobody wait to send.

Every time counts from when the request was to be sent, so that a late sender hides nothing.
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
"""Of Python's garbage collector while a load lasts: young garbage goes, what is old stays."""

Clock = Callable[[], float]
T = TypeVar("T")


class Response(NamedTuple):
    """What became of one request. Seconds after it was to be sent: `lag_s` until it was, `first_s` until its first piece of
    text or call, `end_s` until its end. `status` is HTTP's, 0 without an answer; `error` a code or reason, "" where all is
    well. `retry_after_s` is what a refusal said."""

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
        """Between two tokens of the answer, on the average; None where there were not two."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.output_tokens - 1)


async def open_loop(
    times_s: Sequence[float], send: Callable[[int, float], Awaitable[T]], *, clock: Clock = time.perf_counter
) -> list[T]:
    """Calls `send(number, due)` at each time, in order; `due` is on `clock`. Returns when all have returned.

    When one raises, or this is cancelled, the others are cancelled.
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
    """A full collection walks all answers so far, a tenth of a second in which nothing is sent or read, and all that is under
    way looks slower than it is."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _sent(send: Callable[[int, float], Awaitable[T]], number: int, due: float) -> T:
    return await send(number, due)


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """As many connections as are wanted: a pool's limit would make requests wait unseen."""
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
    """One streamed chat completion at `url` (up to /chat/completions), timed from `due`. Never raises for what the other side
    does."""
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
    """One answer as it comes."""

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
        said = headers.get("retry-after-ms", "")
        return self.seen()._replace(retry_after_s=float(said) / 1000 if said.isdigit() else None)

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
