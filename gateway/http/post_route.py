"""POST routes that need no generation: common handling of method, body and errors."""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from litestar.types import Scope

from gateway.api.dialect import Dialect
from gateway.errors import HeadwayError, MethodNotAllowed
from gateway.http.auth import Caller
from gateway.http.body import Receive, Send, read_body, respond
from gateway.http.response import OPENAI, send_error
from gateway.http.services import Services
from gateway.metering.rate_limits import RateLimitPass

Headers = list[tuple[bytes, bytes]]
Read = Callable[[], Awaitable[bytes]]
Answer = Callable[[Headers, Read], Awaitable[Any]]
"""The endpoint's function. It authenticates before it reads the body."""
Posted = Callable[[Scope, Receive, Send], Awaitable[None]]


def posted(services: Services, answer: Answer, *, other_method: str, dialect: Dialect = OPENAI) -> Posted:
    """Return an ASGI handler. `other_method` is the error message for other methods. Errors of `answer` are rendered by
    `dialect`."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        headers = list(scope["headers"])

        async def read() -> bytes:
            return await read_body(headers, receive, services.body_budget)

        try:
            if scope["method"] != "POST":  # type: ignore[typeddict-item]
                raise MethodNotAllowed(other_method)
            await respond(send, 200, msgspec.json.encode(await answer(headers, read)), [])
        except HeadwayError as error:
            await send_error(send, error, dialect)

    return handle


def counted(services: Services, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """Return the caller of a request that only reads memory, and count it towards the rate limits. Raises Unauthorized or
    RateLimited."""
    caller = services.keys.caller_of(headers)
    with admitted(services, caller):
        return caller


@contextmanager
def admitted(services: Services, caller: Caller) -> Iterator[RateLimitPass]:
    """Count a request that does not generate towards the caller's rate limits. Raises RateLimited."""
    rate_limit_pass = services.rate_limits.enter(caller.limited, time.monotonic())
    try:
        yield rate_limit_pass
    finally:
        services.rate_limits.leave(rate_limit_pass, time.monotonic())
