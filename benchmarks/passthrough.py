"""A do-nothing Litestar proxy on Granian: the cost of a gateway without decisions. Arguments: PORT UPSTREAM."""

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from granian.constants import Interfaces
from granian.server import Server
from litestar import Litestar, Request, Response, get, post
from litestar.response import Stream

_upstream = os.environ.get("PASSTHROUGH_UPSTREAM", "")
"""Granian starts the app in a separate process, so an environment variable passes the address."""


@post("/v1/chat/completions", status_code=200)
async def forward(request: Request[Any, Any, Any]) -> Response[Any] | Stream:
    body = await request.body()
    http: aiohttp.ClientSession = request.app.state.http
    if b'"stream":true' in body.replace(b" ", b""):
        return Stream(_relay(http, body), media_type="text/event-stream")
    async with http.post(f"{_upstream}/v1/chat/completions", data=body) as answer:
        return Response(await answer.read(), media_type="application/json")


async def _relay(http: aiohttp.ClientSession, body: bytes) -> AsyncGenerator[bytes, None]:
    async with http.post(f"{_upstream}/v1/chat/completions", data=body) as answer:
        async for chunk, _ in answer.content.iter_chunks():
            yield chunk


@get("/readyz")
async def ready() -> str:
    return "ok"


@asynccontextmanager
async def _client(app: Litestar) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(headers={"content-type": "application/json"}) as http:
        app.state.http = http
        yield


def build() -> Litestar:
    return Litestar([forward, ready], lifespan=[_client], openapi_config=None)


def main() -> None:
    os.environ["PASSTHROUGH_UPSTREAM"] = sys.argv[2]
    Server(
        "benchmarks.passthrough:build",
        factory=True,
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.ASGI,
        workers=1,
        log_access=False,
    ).serve()


if __name__ == "__main__":
    main()
