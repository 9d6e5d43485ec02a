"""Protocol of one client connection: uvicorn's HTTP/1.1 over httptools, with limits on head, idle time and pipelining.

It runs in the event loop's own thread, so that a request and its body arrive in the same iteration. A server with its own
threads would hand them over separately (docs/log.md, "HTTP in a thread of its own").
"""

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.errors import BadRequest, HeadersTooLarge, HeadwayError, NoWorker, Overloaded
from gateway.http.response import error_answer

MAX_HEAD_BYTES = 65_536
"""Bytes of the request line and all headers. Also the limit of body framing (chunk headers, trailers) without body bytes."""
MAX_HEAD_S = 75
"""Seconds from opening a connection, or from its last response, until the next request has all its headers.

Clients and proxies keep idle connections for 60 s. A longer limit here avoids closing one with a request in transit.
"""
MAX_REST_BYTES = 100_000_000
"""Bytes of a body that continues after its response was sent."""
MAX_PIPELINED = 16
"""Requests that wait on a connection for the response of an earlier one."""
BUSY_RETRY_S = 1.0
LINGER_S = 1.0
"""Seconds a connection stays open after a refusal. If it closed while the client is sending, a reset would discard the error
response."""
_UPGRADING = (b"upgrade", b"http2-settings")


class BoundedHttpProtocol(HttpToolsProtocol):
    """Connection with limits. More than `max_connections` open ones are answered with an error.

    `timeout_keep_alive` of the configuration limits the time until a head is complete, also from the opening of a connection.
    Received bytes do not extend it.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._max_connections = max_connections
        self._running: RequestResponseCycle | None = None
        self._is_over = self._is_in_head = self._began = self._has_body = self._upgrades = False
        self._idle_bytes = self._rest_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse(Overloaded("too many connections are open: try again", retry_after_s=BUSY_RETRY_S), linger_s=0.0)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_over = True
        self._drop()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._is_over or self.transport.is_closing():
            return
        self._began = self._has_body = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(BadRequest("not valid HTTP/1.1: the first line, a header or the framing of the body is wrong"))
            return
        if self._is_over:
            return
        # If a head began or a body continued in this read, its framing bytes are unknown; counting restarts with the next read.
        self._idle_bytes = 0 if self._began or self._has_body else self._idle_bytes + len(data)
        if self._idle_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = self._began = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # ignores trailers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_over or self.transport.is_closing():
            return
        self._is_in_head, self._rest_bytes = False, 0
        self._unset_keepalive_if_required()
        version = self.parser.get_http_version()
        if len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        elif version not in ("1.0", "1.1"):
            self._refuse(BadRequest(f"HTTP/{version} is not supported: use HTTP/1.1"))
        elif self.parser.should_upgrade():
            self._upgrades = True  # parsed again without the offer, see _without_upgrade
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(Overloaded("too many requests are pipelined: wait for responses", retry_after_s=BUSY_RETRY_S))
        else:
            self._begin(knows_chunks=version != "1.0")

    def _begin(self, *, knows_chunks: bool) -> None:
        expects = self.expect_100_continue = self.expect_100_continue and knows_chunks
        super().on_headers_complete()
        self.cycle.transport = _OutputBuffer(self.transport, self.loop, knows_chunks=knows_chunks)  # type: ignore[assignment]
        if expects:  # after an early response the client may or may not send the body, so the next bytes are ambiguous
            self.cycle.keep_alive = False
        # Keep reading to detect a disconnect while a request waits. MAX_PIPELINED limits the requests.
        self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        if self._is_over or self._upgrades or self.transport.is_closing():
            return
        self._has_body = True
        super().on_body(body)
        if self.cycle.response_complete:
            self._rest_bytes += len(body)
            if self._rest_bytes > MAX_REST_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        if not (self._is_over or self._upgrades or self.transport.is_closing()):
            super().on_message_complete()

    def shutdown(self) -> None:
        super().shutdown()
        running = self._running
        for cycle in self._open():
            cycle.keep_alive = False
        if running and running.more_body and not running.response_started and not self.transport.is_closing():
            self._refuse(NoWorker("this gateway is stopping"), linger_s=0.0)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _open(self) -> list[RequestResponseCycle]:
        """Return the requests without a complete response."""
        begun = [self._running] if self._running else []
        return [cycle for cycle in (*begun, *[cycle for cycle, _ in self.pipeline]) if not cycle.response_complete]

    def _drop(self) -> None:
        for cycle in self._open():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()

    def _without_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its upgrade offer.

        A client may offer another protocol and still send its request (Java's does with HTTP/2). The parser treats what follows
        as that protocol.
        """
        self._upgrades = False
        if self._is_over:
            return
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(BadRequest("CONNECT is not supported: this is not a proxy"))
            return
        lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for part in value.split(b",") if (token := part.strip()).lower() not in _UPGRADING)
            if name not in _UPGRADING and value:
                lines.append(b"%b: %b\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*lines, b"\r\n", rest]))

    def _refuse(self, error: HeadwayError, *, linger_s: float = LINGER_S) -> None:
        """Send an error and close. Nothing more is read, because the next request's start is unknown. A response being written
        is cut off instead."""
        if self._is_over:
            return
        running = self._running
        is_writing = running is not None and running.response_started and not running.response_complete
        self._is_over = True
        self._drop()
        self._unset_keepalive_if_required()
        if not is_writing:
            self.transport.write(_refusal(error))
        if linger_s:
            self.flow.resume_reading()
            self.transport.write_eof()
            self.loop.call_later(linger_s, self.transport.close)
        else:
            self.transport.close()


def _refusal(error: HeadwayError) -> bytes:
    status, body, headers = error_answer(error)
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    return b"".join([STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers], b"\r\n", body])


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"the headers are larger than {MAX_HEAD_BYTES:,} bytes, which is this gateway's limit")


class _OutputBuffer:
    """Transport that sends a response's head and first body bytes in one write: each write is a system call and wakes the
    client.

    HTTP/1.0 has no chunked encoding, so such a body ends with its connection.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, knows_chunks: bool) -> None:
        self._transport, self._loop = transport, loop
        self._held: bytes | None = None
        self._is_begun, self._unframes = False, not knows_chunks
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._held = self._head(data)
            self._loop.call_soon(self._flush)
            return
        if self._unframes:
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size or b"0", 16)]
        if self._held is not None:
            data, self._held = self._held + data, None
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _head(self, data: bytes) -> bytes:
        if self._unframes:
            head = data.replace(b"transfer-encoding: chunked\r\n", b"")
            self._unframes = head != data
            return head
        return data

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            if not self._transport.is_closing():
                self._transport.write(held)
