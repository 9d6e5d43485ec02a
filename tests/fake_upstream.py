"""An OpenAI-compatible server on loopback that says what a test tells it to: `replies` first, then the usual answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Data = dict[str, Any]
Reply = Callable[[web.Request, Data], Awaitable[web.StreamResponse]]
WORDS = ("Hello", " from", " afar")
USAGE: Data = {"prompt_tokens": 100, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}}


def delta(finish: str | None = None, **fields: Any) -> Data:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def chunks(*words: str, finish: str | None = "stop", usage: Data | None = USAGE) -> list[Data]:
    said = [delta(role="assistant", content=""), *(delta(content=word) for word in words)]
    return [*said, *([delta(finish)] if finish else []), *([{"choices": [], "usage": usage}] if usage else [])]


def stream(*said: Data | str, pause_s: float = 0.0, cut: bool = False) -> Reply:
    """Events, each after a pause; a string goes out as it stands. `cut` drops the connection instead of an end."""

    async def reply(request: web.Request, body: Data) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for one in said:
            await asyncio.sleep(pause_s)
            await response.write(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode())
        if cut:
            assert request.transport
            request.transport.close()
        else:
            await response.write(b"data: [DONE]\n\n")
        return response

    return reply


def whole(message: Data, finish: str = "stop", usage: Data | None = USAGE) -> Reply:
    async def reply(request: web.Request, body: Data) -> web.StreamResponse:
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage})

    return reply


def status(code: int, message: str = "no", headers: dict[str, str] | None = None) -> Reply:
    async def reply(request: web.Request, body: Data) -> web.StreamResponse:
        return web.json_response({"error": {"message": message}}, status=code, headers=headers)

    return reply


class FakeUpstream:
    """`bodies` and `keys` are what arrived; `num_left` counts callers that hung up."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.usual: Reply = stream(*chunks(*WORDS))
        self.bodies: list[Data] = []
        self.headers: list[dict[str, str]] = []
        self.num_left = 0
        self.url = ""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        reply = self.replies.pop(0) if self.replies else self.usual
        try:
            return await reply(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.num_left += 1
            raise

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeUpstream"]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()
