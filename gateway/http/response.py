"""Writes one response: headers once, then a body or events, or an error in the form that is still possible."""

import asyncio
import math
from collections.abc import Callable

from gateway.api.chat_dialect import ChatDialect
from gateway.api.chat_render import WAITING
from gateway.api.dialect import Dialect
from gateway.errors import HeadwayError
from gateway.http.body import Send, respond
from gateway.pipeline.active_request import ActiveRequest
from gateway.runs.identity import public_id

FIRST_COMMENT_S = 10.0
"""Seconds before a waiting stream gets its 200 and a comment, so that proxies do not close it. Also the interval of further
comments."""

MAX_RETRY_S = 60.0
"""Seconds. The official clients ignore a longer `retry-after` and retry earlier."""

OPENAI = ChatDialect()
Headers = list[tuple[bytes, bytes]]


def error_answer(error: HeadwayError, dialect: Dialect = OPENAI) -> tuple[int, bytes, Headers]:
    """Return status, body and headers of an error response. The dialect renders the body."""
    headers: Headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(1000 * error.retry_after_s)))
    if error.status == 429:
        # Clients that know this header then do not retry before it can succeed.
        soon = error.retry_after_s is not None and error.retry_after_s <= MAX_RETRY_S
        headers.append((b"x-should-retry", b"true" if soon else b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 405:
        headers.append((b"allow", b"POST"))
    return error.status, dialect.error(error), headers


async def send_error(send: Send, error: HeadwayError, dialect: Dialect = OPENAI) -> None:
    status, body, headers = error_answer(error, dialect)
    await respond(send, status, body, headers)


def decision_headers(active: ActiveRequest) -> Headers:
    """Return the headers that describe the decision."""
    decision = active.pending.decision
    assert decision
    chosen = decision.chosen
    values = {
        "decision-id": decision.id,
        "model": chosen.model,
        "tier": chosen.tier,
        "worker": chosen.worker,
        "reason": decision.reason,
        "run-id": public_id(active.identity.run),
    }
    return [(f"x-headway-{name}".encode(), value.encode("latin-1", "replace")) for name, value in values.items()]


class ResponseWriter:
    """Writer of one response. `opened` is true from the first byte on; then an error can only be an event."""

    def __init__(self, send: Send, dialect: Dialect = OPENAI) -> None:
        self.opened = False
        self._send, self._dialect = send, dialect

    async def whole(self, body: bytes, headers: Headers) -> None:
        self.opened = True
        await respond(self._send, 200, body, headers)

    async def open_stream(self, headers: Headers) -> None:
        if not self.opened:
            self.opened = True
            headers += [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def fail(self, error: HeadwayError) -> None:
        if self.opened:
            await self.write(self._dialect.error_event(error), more=False)
        else:
            await send_error(self._send, error, self._dialect)


class Comments:
    """Keeps a waiting stream's connection alive. It costs one timer until the first comment."""

    def __init__(self, response: ResponseWriter, headers: Callable[[], Headers], every_s: float = FIRST_COMMENT_S) -> None:
        self._response, self._headers, self._every_s = response, headers, every_s
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(every_s, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        await self._response.open_stream(self._headers())
        while True:
            await self._response.write(WAITING, more=True)
            await asyncio.sleep(self._every_s)

    async def stop(self) -> None:
        """Stop; on return no write is in progress."""
        self._timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
