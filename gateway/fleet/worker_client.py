"""Connection to one worker. Every submit gets exactly one `Finished`: the worker's, or ours when the link drops.

The client reconnects for ever. A worker that sends nothing while requests run counts as dead. The reader never waits for a
stream's consumer, so one slow client cannot delay the others.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

import aiohttp
import msgspec
from msgspec import structs

from backends import wire
from gateway.errors import WorkerLost
from gateway.fleet import bounds
from gateway.fleet.credits import Credits
from gateway.fleet.token_stream import TokenStream
from gateway.runtime.background import Background
from gateway.runtime.redaction import redacted
from gateway.text.model_text import ModelText
from gateway.text.prompt_encoder import Target

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
HEARTBEAT_S = 30.0
MAX_SILENCE_S = 120.0
"""Seconds without a report after which a busy worker counts as dead. It reports every step, which can be slow on a CPU."""
CLOSE_S = 2.0
MAX_WAITING_SCORES = 1_000
PIECE_TOKENS = "piece_tokens"
"""Name of the excess of pieces with more tokens than were allowed."""
SCORES_WAIT_S = 0.02
"""Seconds that scores wait for another message to share a frame with: a frame costs more than the scores in it."""
MAX_ASSET_BYTES = 256 * 1024 * 1024
ASSET_OVERHEAD_BYTES = 1024
"""Bytes that a chunk counts besides its data, so that the number of chunks is bounded too. A name may have as many."""

log = logging.getLogger("headway.link")


class WorkerEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Callbacks of the reader, called in frame order. `cache` returns whether the frame was in order; if not, we reconnect."""

    cache: Callable[[str, wire.Cache], bool]
    load: Callable[[str, wire.Load], None]
    finished: Callable[[str, wire.Finished], None]
    state: Callable[[str], None]
    stalled: Callable[[str], None] = lambda worker: None
    """Called when the worker made no step for `max_silence_s`, before it is lost."""
    excess: Callable[[str, Sequence[str]], None] = lambda worker, fields: None
    """Called with the fields of a report that were cut to their bounds, or that refused the link."""


class WorkerClient:
    """Client of one worker. `url` is unix:///path, ws://host:port or wss://host:port. `problem` is why it is not healthy."""

    def __init__(
        self,
        worker: str,
        url: str,
        events: WorkerEvents,
        *,
        token: str | None = None,
        read_text: Callable[[Mapping[str, bytes]], ModelText] = ModelText.from_files,
        max_silence_s: float = MAX_SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
        background: Background | None = None,
    ) -> None:
        self.worker = worker
        self.url = url
        self.hello: wire.Hello | None = None
        self.load: wire.Load | None = None
        self.text: ModelText | None = None
        self.problem = "not connected yet"
        self.credits = Credits()
        self.streams: dict[int, TokenStream] = {}
        self._events = events
        self._token = token
        self._read_text = read_text
        self._max_silence_s = max_silence_s
        self._clock = clock
        self._background = background or Background()
        self._heard_at = 0.0
        self._next_request = 0
        self._outbox: list[wire.Down] = []
        self._outgoing = asyncio.Event()
        self._scores_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        return self.load is not None

    def start(self) -> None:
        self._task = self._background.start(f"link {self.worker}", self._reconnect, failed=self._lost)

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._lost("the gateway is stopping")

    def submit(
        self,
        prompt: bytes,
        sampling: wire.Sampling,
        *,
        uncached_tokens: int,
        priority: int = 0,
        salt: str = "",
        chain: str = "",
        traceparent: str = "",
        shared_tokens: int = 0,
    ) -> TokenStream:
        """Send a request. `prompt` is uint32 little-endian token ids. Raises WorkerLost when there is no link."""
        if not self.healthy:
            raise WorkerLost(f"worker {self.worker} is not connected: {self.problem}")
        if not self.streams:
            self._heard_at = asyncio.get_running_loop().time()
        self._next_request += 1
        request = self._next_request
        sent = bounds.Sent(len(prompt) // 4, sampling.max_tokens, self._clock(), sampling.stop)
        stream = self.streams[request] = TokenStream(self.worker, request, self._abort, sent)
        self.credits.submit(request, uncached_tokens, salt, priority)
        self._send(
            wire.Submit(
                request=request,
                prompt=prompt,
                sampling=sampling,
                priority=priority,
                cache_salt=salt,
                chain=chain,
                traceparent=traceparent,
                shared_tokens=shared_tokens,
            )
        )
        return stream

    def set_retention(self, chain: str, score: float) -> None:
        """Send the retention score of a chain's pages; at 0 they may be evicted at once."""
        if self.healthy and len(self._outbox) < MAX_WAITING_SCORES:
            self._outbox.append(wire.SetRetention(chain, score))
            if self._scores_timer is None:
                self._scores_timer = asyncio.get_running_loop().call_later(SCORES_WAIT_S, self._outgoing.set)

    def _abort(self, request: int) -> None:
        if request in self.streams:
            self._send(wire.Abort(request))

    def _send(self, message: wire.Down) -> None:
        # Bounded: one Submit and one Abort for each live sequence, which the credits bound, and MAX_WAITING_SCORES.
        self._outbox.append(message)
        self._outgoing.set()

    async def _reconnect(self) -> None:
        delay = FIRST_RETRY_S
        while True:
            try:
                await self._connect()
                problem = "the worker closed the link"
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError, ValueError) as error:
                problem = redacted(f"{type(error).__name__}: {error}", [self._token] if self._token else [])
                if isinstance(error, bounds.OutOfRange):
                    self._events.excess(self.worker, (error.field,))
            delay = FIRST_RETRY_S if self._lost(problem) else min(2 * delay, LAST_RETRY_S)
            await asyncio.sleep(delay)

    async def _connect(self) -> None:
        kind, _, where = self.url.partition("://")
        connector = aiohttp.UnixConnector(path=where) if kind == "unix" else None
        address = "http://worker/link" if kind == "unix" else f"{self.url}/link"
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers) as session,
            session.ws_connect(
                address,
                max_msg_size=wire.MAX_FRAME_BYTES,
                heartbeat=HEARTBEAT_S,
                compress=0,
                autoping=True,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            ) as socket,
        ):
            await self._greet(socket)
            reader = asyncio.create_task(self._read(socket), name=f"link reader {self.worker}")
            others = (
                asyncio.create_task(self._write(socket), name=f"link writer {self.worker}"),
                asyncio.create_task(self._watch(), name=f"link watch {self.worker}"),
            )
            try:
                await asyncio.wait((reader, *others), return_when=asyncio.FIRST_COMPLETED)
                for task in (*others, reader):
                    if task.done():
                        task.result()
            finally:
                for task in (reader, *others):
                    task.cancel()
                await asyncio.gather(reader, *others, return_exceptions=True)

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Receive assets, then `Hello`. Raises ValueError for any other message."""
        parts: dict[str, bytearray] = {}
        size = 0
        while True:
            frame = await socket.receive()
            if frame.type is not aiohttp.WSMsgType.BINARY:
                raise ValueError(f"a {frame.type.name} frame before Hello")
            match wire.decode_up(frame.data):
                case [wire.Asset(name, data, _)]:
                    parts.setdefault(name, bytearray()).extend(data)
                    size += ASSET_OVERHEAD_BYTES + len(data)
                    if size > MAX_ASSET_BYTES:
                        raise ValueError(f"assets of over {MAX_ASSET_BYTES:,} bytes")
                case [wire.Hello() as hello]:
                    break
                case messages:
                    raise ValueError(f"{', '.join(type(message).__name__ for message in messages)} before Hello")
        bounds.check_hello(hello)
        if hello.protocol != wire.PROTOCOL:
            raise ValueError(f"the worker speaks protocol {hello.protocol}, this gateway {wire.PROTOCOL}: run the same version")
        files = {name: bytes(data) for name, data in parts.items()}
        # A large tokenizer takes a second to build.
        self.text = await asyncio.to_thread(self._read_text, files)
        self.hello = hello

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Send all messages collected since the last wake-up together."""
        while True:
            while self._outbox:
                messages, self._outbox = self._outbox, []
                self._stop_waiting()
                for frame in wire.frames(messages):
                    await socket.send_bytes(frame)
            self._outgoing.clear()
            await self._outgoing.wait()

    def _stop_waiting(self) -> None:
        if self._scores_timer:
            self._scores_timer.cancel()
            self._scores_timer = None

    async def _watch(self) -> None:
        """Raise TimeoutError when running requests make no step, though the process and its socket may be alive."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._max_silence_s / 4)
            if self.streams and loop.time() - self._heard_at > self._max_silence_s:
                self._events.stalled(self.worker)
                raise TimeoutError(f"it made no step for {self._max_silence_s:g} s")

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.BINARY:
                if isinstance(socket.exception(), TimeoutError):  # no pong: the whole process hangs
                    self._events.stalled(self.worker)
                raise ValueError(f"a {frame.type.name} frame on the link: {socket.exception()}")
            self._heard_at = loop.time()
            for message in wire.decode_up(frame.data):
                self._take(message)

    def _take(self, message: wire.Up) -> None:
        match message:
            case wire.Tokens(pieces):
                for piece in pieces:
                    if stream := self.streams.get(piece.request):
                        self.credits.prefilled(piece.request)
                        stream.push(self._bounded(piece, stream))
            case wire.Finished():
                self._finish(message)
            case wire.Load():
                assert self.hello
                bounds.check_load(message, self.hello)
                first = self.load is None
                self.load = message
                self.credits.grant(message)
                self._events.load(self.worker, message)
                if first:
                    log.info("worker %s is up", self.worker)
                    self._events.state(self.worker)
            case wire.Cache():
                bounds.check_cache(message)
                if not self._events.cache(self.worker, message):
                    raise ValueError(f"cache frame {message.sequence} is out of order: reconnecting to resync")
            case wire.Asset() | wire.Hello():
                raise ValueError(f"{type(message).__name__} after Hello")
            case _:
                assert_never(message)

    def _bounded(self, piece: wire.Piece, stream: TokenStream) -> wire.Piece:
        bounded = bounds.cut_piece(piece, tokens_left=stream.tokens_left)
        stream.tokens_left -= bounded.num_tokens
        if bounded is not piece and PIECE_TOKENS not in stream.cut:
            stream.cut += (PIECE_TOKENS,)
        return bounded

    def _finish(self, finished: wire.Finished) -> None:
        """End a stream with the report cut to its bounds. Raises OutOfRange for a value that no request has."""
        if (stream := self.streams.get(finished.request)) is None:
            return
        assert self.hello
        now = self._clock()
        finished = structs.replace(finished, error=redacted(finished.error)) if finished.error else finished
        bounded, cut = bounds.cut_finished(finished, stream.sent, now=now, max_sequences=self.hello.max_sequences)
        stream.cut += cut
        if stream.cut:
            log.warning("worker %s: its report exceeds what the request allows: %s", self.worker, ", ".join(stream.cut))
            self._events.excess(self.worker, stream.cut)
        del self.streams[finished.request]
        self.credits.finish(finished.request)
        # A report that was cut teaches nothing: without device time it only ends the request in the predictions.
        self._events.finished(self.worker, structs.replace(bounded, device_s=0.0) if stream.cut else bounded)
        stream.end(bounded)

    def _lost(self, problem: str) -> bool:
        """End all running requests with an error. Return whether the worker had been up."""
        was_healthy = self.healthy
        if was_healthy:
            log.warning("worker %s lost: %s", self.worker, problem)
        self.hello, self.load, self.problem = None, None, problem
        self._outbox.clear()
        self._stop_waiting()
        self.credits.forget()
        streams, self.streams = self.streams, {}
        if newest := streams.get(self._next_request):
            newest.blamed = not newest.has_output
        for stream in streams.values():
            error = f"worker {self.worker} was lost while the request ran: {problem}"
            stream.end(wire.Finished(request=stream.request, reason="error", error=error, error_code="worker_lost"))
        if was_healthy:
            self._events.state(self.worker)
        return was_healthy


def target_of(client: WorkerClient) -> Target | None:
    """Return a worker's tokenizer and limits; None before it was first up."""
    if client.text is None or client.hello is None:
        return None
    return Target(client.worker, client.text, client.hello.fingerprint, client.hello.page_size, client.hello.max_context)
