"""The few ASGI moves that the chat route makes itself, so that it owns receiving and sending from first byte to last."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from gateway.errors import BadRequest, BodyTooLarge, BodyTooSlow, Overloaded

MAX_BODY_S = 120.0
"""A body of the largest size over a slow line; what takes longer only holds memory."""
MAX_DISCARDED_BYTES = 100_000_000
MAX_DISCARD_S = 10.0
BUSY_RETRY_S = 1.0

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]


class BodyBudget:
    """What all bodies that are on their way hold together; each has at most `max_bytes` to itself."""

    def __init__(self, max_bytes: int, max_all_bytes: int) -> None:
        self.max_bytes, self.max_all_bytes = max_bytes, max_all_bytes
        self.num_bytes = 0


async def read_body(headers: RawHeaders, receive: Receive, body_budget: BodyBudget, *, max_s: float = MAX_BODY_S) -> bytes:
    """Stops reading at the limits, whatever was announced. Raises BodyTooLarge, BodyTooSlow, Overloaded where too much is on
    its way, or BadRequest when the body breaks off: its framing is wrong, or nobody is there to read the answer."""
    max_bytes = body_budget.max_bytes
    announced = next((int(value) for name, value in headers if name == b"content-length" and value.isdigit()), None)
    if announced is not None and announced > max_bytes:
        if not any(name == b"expect" for name, _ in headers):  # who does waits for our word, which is no
            await _discard(receive)
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(max_s):
            return await _read_chunks(receive, body_budget, announced)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body was not whole after {max_s:g} s, which is this gateway's limit: send it faster") from error


async def _read_chunks(receive: Receive, body_budget: BodyBudget, announced: int | None) -> bytes:
    """With the last of the bytes that were announced it is whole: to be told so takes as long as to be handed them."""
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("the body ended before it was whole: send all of it")
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
                raise Overloaded("too many bytes of other requests are on their way: try again", retry_after_s=BUSY_RETRY_S)
            chunks.append(chunk)
            if not message.get("more_body", False) or size == announced:
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        body_budget.num_bytes -= size


async def _discard(receive: Receive) -> None:
    """Takes in what is still coming, keeping nothing: many clients only read an answer when they have sent everything."""
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
    """A whole JSON answer."""
    headers.append((b"content-type", b"application/json"))
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
