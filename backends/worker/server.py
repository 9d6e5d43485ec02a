"""Socket of a worker: `/link` for gateways, `/health` and `/metrics` for people and machines.

A link that sends an invalid message is closed with the reason; one that receives too slowly is cut. Its requests are aborted.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import CollectorRegistry, generate_latest

from backends.wire import MAX_FRAME_BYTES, Hello, decode_down, encode
from backends.worker import assets
from backends.worker.link_handler import Attach, Command, Detach, Frame, Outgoing
from backends.worker.send_buffer import Close, SendBuffer

Post = Callable[[Command], None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GatewayLink(NamedTuple):
    """The sending side of one connection."""

    send_buffer: SendBuffer
    transport: asyncio.Transport | None

    def cut(self) -> None:
        """Abort the connection without a reason: the other side does not receive, so none would arrive."""
        if self.transport is not None:
            self.transport.abort()


class Server:
    """Lives on the event loop. `deliver` is called there with what the engine's thread sent."""

    def __init__(
        self, hello: Hello, files: dict[str, bytes], metrics: CollectorRegistry, *, post: Post, token: str | None = None
    ) -> None:
        self._greeting = [encode(chunk) for chunk in assets.chunks(files)] + [encode(hello)]
        self._hello, self._metrics, self._post, self._token = hello, metrics, post, token
        self.links: dict[int, GatewayLink] = {}
        self._numbered = 0
        self._failure = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/link", self._guarded(self._link))
        app.router.add_get("/metrics", self._guarded(self._show_metrics))
        app.router.add_get("/health", self._health)
        return app

    def deliver(self, outgoing: list[Outgoing]) -> None:
        for number, frames, close in outgoing:
            link = self.links.get(number)
            if link is None:
                continue
            if not link.send_buffer.put(frames):
                link.cut()
            elif close:
                link.send_buffer.close(close)

    def fail(self, error: BaseException) -> None:
        """Close every link and report the failure in health, after the engine has failed."""
        self._failure = f"{type(error).__name__}: {error}"
        for link in self.links.values():
            link.send_buffer.close("the engine failed")

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            sent = request.headers.get("Authorization", "")
            if self._token is not None and not hmac.compare_digest(sent.encode(), f"Bearer {self._token}".encode()):
                return web.json_response({"error": "send this worker's token as `Authorization: Bearer ...`"}, status=401)
            return await handler(request)

        return guarded

    async def _health(self, request: web.Request) -> web.Response:
        status = {"status": "failed" if self._failure else "ok", "model": self._hello.model, "failure": self._failure}
        return web.json_response(status, status=503 if self._failure else 200)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _link(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, heartbeat=30, compress=False)
        await socket.prepare(request)
        self._numbered += 1
        link, send_buffer = self._numbered, SendBuffer(self._greeting)
        self.links[link] = GatewayLink(send_buffer, request.transport)
        sender = asyncio.create_task(_send(socket, send_buffer))
        self._post(Attach(link))
        try:
            reason = await self._receive(socket, link)
        finally:
            self._post(Detach(link))
            del self.links[link]
        if reason:
            await _close(socket, reason)
        sender.cancel()
        return socket

    async def _receive(self, socket: web.WebSocketResponse, link: int) -> str:
        """Serve a link until it is closed. Return the reason to close it, if the other side gave one."""
        async for message in socket:
            if message.type != WSMsgType.BINARY:
                return "frames are binary msgpack"
            try:
                for one in decode_down(message.data):
                    self._post(Frame(link, one))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                return f"no such message: {error}"
        return ""


async def _send(socket: web.WebSocketResponse, send_buffer: SendBuffer) -> None:
    with suppress(ConnectionError):
        while not isinstance(item := await send_buffer.get(), Close):
            await socket.send_bytes(item)
        await _close(socket, item.reason)


async def _close(socket: web.WebSocketResponse, reason: str) -> None:
    """Close with a reason, cut to fit the 123 bytes of a close frame."""
    short = reason.encode()[:120].decode(errors="ignore").encode()
    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=short)
