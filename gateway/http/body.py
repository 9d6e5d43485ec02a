"""Receives request bodies and sends whole responses over plain ASGI, with limits on size, time and memory."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from gateway.errors import BadRequest, BodyTooLarge, BodyTooSlow, Overloaded

MAX_BODY_S = 120.0
"""Seconds for a body: enough for the largest one over a slow line. Longer transfers only occupy memory."""
MAX_DISCARDED_BYTES = 100_000_000
MAX_DISCARD_S = 10.0
BUSY_RETRY_S = 1.0

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]


class BodyBudget:
    """Bytes of all bodies being received. One body may have at most `max_bytes`, all together `max_all_bytes`."""

    def __init__(self, max_bytes: int, max_all_bytes: int) -> None:
        self.max_bytes, self.max_all_bytes = max_bytes, max_all_bytes
        self.num_bytes = 0


async def read_body(headers: RawHeaders, receive: Receive, body_budget: BodyBudget, *, max_s: float = MAX_BODY_S) -> bytes:
    """Receive a whole body. It stops at the limits even if Content-Length announced less.

    Raises BodyTooLarge or BodyTooSlow at its own limits and Overloaded at the limit of all bodies. Raises BadRequest if the
    body ends early, by wrong framing or because the client disconnected.
    """
    max_bytes = body_budget.max_bytes
    announced = next((int(value) for name, value in headers if name == b"content-length" and value.isdigit()), None)
    if announced is not None and announced > max_bytes:
        if not any(name == b"expect" for name, _ in headers):  # with Expect the client sends no body before a 100
            await _discard(receive)
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(max_s):
            return await _read_chunks(receive, body_budget, announced)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body was incomplete after {max_s:g} s, this gateway's limit: send it faster") from error


async def _read_chunks(receive: Receive, body_budget: BodyBudget, announced: int | None) -> bytes:
    """Receive until Content-Length is reached: waiting for `more_body=False` would cost one more wake-up."""
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("the body ended early: send all of it")
            chunk = message.get("body", b"")
            size += len(chunk)
            body_budget.num_bytes += len(chunk)
            if size > body_budget.max_bytes:
                chunks.clear()
                await _discard(receive)
                raise _too_large(body_budget.max_bytes)
            if body_budget.num_bytes > body_budget.max_all_bytes:
                chunks.clear()
                await _discard(receive)
                raise Overloaded("the bodies of other requests fill the receive budget: try again", retry_after_s=BUSY_RETRY_S)
            chunks.append(chunk)
            if not message.get("more_body", False) or size == announced:
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        body_budget.num_bytes -= size


async def _discard(receive: Receive) -> None:
    """Receive and drop the rest of the body: many clients read a response only after they have sent everything."""
    left = MAX_DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_DISCARD_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes:,} bytes, which is this gateway's limit")


async def until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a whole JSON response."""
    headers.append((b"content-type", b"application/json"))
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
