"""One client's connection: uvicorn's HTTP/1.1 over httptools, with bounds on what it leaves open.

It lives in the event loop's own thread: a request is there with its body in the round in which it comes, where a server with
threads of its own hands over one and then the other (docs/log.md, "HTTP in a thread of its own").
"""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.errors import BadRequest, HeadersTooLarge, HeadwayError, Overloaded
from gateway.reply import error_answer

MAX_HEAD_BYTES = 65_536
"""The request line and all headers."""
MAX_HEAD_S = 75.0
"""From the opening of a connection, or its last answer, until the next request has all its headers: longer than the clients and
proxies in front of us keep theirs (60 s), so that none is closed with a request on its way."""
MAX_REST_BYTES = 100_000_000
"""Of a body that goes on after its answer was given."""
BUSY_RETRY_S = 1.0


class Connection(HttpToolsProtocol):
    """At most `max_connections` are open; who comes after that is told so."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
        max_head_s: float = MAX_HEAD_S,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._max_connections, self._max_head_s = max_connections, max_head_s
        self._head_bytes = self._rest_bytes = 0
        self._is_in_head = False
        self._head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse(Overloaded("too many connections are open: try again", retry_after_s=BUSY_RETRY_S))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head_is_there()

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._is_in_head, self._rest_bytes = False, 0
        self._head_is_there()
        if len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
            return
        super().on_headers_complete()
        knows_chunks = self.scope["http_version"] != "1.0"
        self.cycle.transport = _Out(self.transport, self.loop, knows_chunks=knows_chunks)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        super().on_body(body)
        if self.cycle.response_complete:
            self._rest_bytes += len(body)
            if self._rest_bytes > MAX_REST_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if not self.pipeline and not self.transport.is_closing():
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._refuse(BadRequest("this is no HTTP/1.1: the first line, a header or the framing of the body is wrong"))

    def _await_head(self) -> None:
        self._head_is_there()
        self._head_due = self.loop.call_later(self._max_head_s, self.timeout_keep_alive_handler)

    def _head_is_there(self) -> None:
        if self._head_due:
            self._head_due.cancel()
            self._head_due = None

    def _refuse(self, error: HeadwayError) -> None:
        """Nothing more is read: where one request ends and the next begins is not known. An answer that is being written breaks
        off instead."""
        cycle = self.cycle
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        status, body, headers = error_answer(error)
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"the headers are larger than {MAX_HEAD_BYTES:,} bytes, which is this gateway's limit")


class _Out:
    """Where an answer's head and what follows at once go out together: each write is a system call here and wakes a client
    there. HTTP/1.0 knows no chunks: there such a body ends with its connection."""

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
