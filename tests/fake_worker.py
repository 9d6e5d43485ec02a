"""A worker on the real link without a model: `FakeWorker` in a test, or `python -m tests.fake_worker --listen unix:///...`.

Its next word depends on every token before it, so a wrong prompt shows as wrong text. Time is virtual: a step costs
`step_device_s` of the device, whatever the clock says, so that device-seconds can be summed exactly.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import sys
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import uvloop
from aiohttp import WSMsgType, web

from backends import wire

ASSETS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
Answer = Callable[[bytes, wire.Sampling], Iterable[str]]


def words(prompt: bytes, sampling: wire.Sampling) -> Iterator[str]:
    """Never ends. Each word comes from a checksum over the prompt and all words before it."""
    state = zlib.crc32(prompt)
    while True:
        word = f" w{state % 997}"
        yield word
        state = zlib.crc32(word.encode(), state)


def expected_text(prompt: bytes, num_tokens: int) -> str:
    return "".join(islice(words(prompt, wire.Sampling(max_tokens=num_tokens)), num_tokens))


@dataclass(slots=True, eq=False)
class _Sequence:
    link: "_LinkSide"
    request: int
    words: Iterator[str]
    max_tokens: int
    num_prompt: int
    num_cached: int
    page_hashes: list[bytes]
    steps_to_first: int
    logprobs: bool = False
    num_output: int = 0
    device_s: float = 0.0
    prefill_device_s: float = 0.0
    num_steps: int = 0
    aborted: bool = False


@dataclass(slots=True, eq=False)
class _LinkSide:
    socket: web.WebSocketResponse
    cache_sequence: int = 0
    live: dict[int, _Sequence] = field(default_factory=dict)

    async def send(self, *messages: wire.Up) -> None:
        with contextlib.suppress(ConnectionError):
            for frame in wire.frames(messages):
                await self.socket.send_bytes(frame)


class FakeWorker:
    """`submitted`, `refused` and `retained` are what arrived; `hold()` stops the engine until `release()`.

    A submit that is `poison` drops every link, as a crash does. The next `num_hang_ups` links are closed before a word is said.
    """

    def __init__(
        self,
        assets: Mapping[str, bytes],
        *,
        model: str = "fake",
        answer: Answer = words,
        token: str | None = None,
        max_context: int = 4096,
        page_size: int = 16,
        num_pages: int = 1024,
        max_sequences: int = 32,
        credit_tokens: int = 8192,
        step_s: float = 0.0,
        prefill_steps: int = 1,
        tokens_per_step: int = 1,
        step_device_s: float = 0.001,
        grammars: bool = True,
        confidence: float = 1.0,
        poison: Callable[[wire.Submit], bool] = lambda submit: False,
    ) -> None:
        self.poison = poison
        self.confidence = confidence
        self.assets, self.answer, self.token = assets, answer, token
        self.max_sequences, self.credit_tokens = max_sequences, credit_tokens
        self.step_s, self.prefill_steps, self.tokens_per_step = step_s, prefill_steps, tokens_per_step
        self.step_device_s, self.busy_s, self.idle_s, self.attributed_s = step_device_s, 0.0, 0.0, 0.0
        self.hello = wire.Hello(
            protocol=wire.PROTOCOL,
            model=model,
            fingerprint=f"fake-{model}",
            device="cpu",
            max_context=max_context,
            page_size=page_size,
            num_pages=num_pages,
            max_sequences=max_sequences,
            eos_tokens=(2,),
            kernels={},
            grammars=grammars,
        )
        self.submitted: list[wire.Submit] = []
        self.refused = 0
        self.retained: list[wire.SetRetention] = []
        self.num_hang_ups = 0
        self.skip_cache_frames = 0
        self._pages: OrderedDict[bytes, None] = OrderedDict()
        self._running: list[_Sequence] = []
        self._links: list[_LinkSide] = []
        self._wake, self._go = asyncio.Event(), asyncio.Event()
        self._go.set()
        self._runner: web.AppRunner | None = None
        self._engine: asyncio.Task[None] | None = None

    @property
    def num_live(self) -> int:
        return len(self._running)

    @property
    def free_pages(self) -> int:
        held = sum(math.ceil((s.num_prompt + s.num_output) / self.hello.page_size) for s in self._running)
        return self.hello.num_pages - len(self._pages) - held

    @property
    def cached_pages(self) -> int:
        return len(self._pages)

    async def start(self, listen: str) -> None:
        app = web.Application()
        app.router.add_get("/link", self._link)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        kind, _, where = listen.partition("://")
        if kind == "unix":
            await web.UnixSite(self._runner, where).start()
        else:
            host, _, port = where.rpartition(":")
            await web.TCPSite(self._runner, host, int(port)).start()
        self._engine = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Drops every link without a word, as a crash does."""
        if self._engine:
            self._engine.cancel()
        self.drop_links()
        self._running.clear()
        if self._runner:
            await self._runner.cleanup()

    def drop_links(self) -> None:
        for link in self._links:
            transport = link.socket._req.transport if link.socket._req else None
            if transport:
                transport.abort()

    async def send_garbage(self, frame: bytes) -> None:
        for link in tuple(self._links):
            await link.socket.send_bytes(frame)

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"running": len(self._running)})

    async def _link(self, request: web.Request) -> web.StreamResponse:
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        socket = web.WebSocketResponse(max_msg_size=wire.MAX_FRAME_BYTES, compress=False)
        await socket.prepare(request)
        if self.num_hang_ups:
            self.num_hang_ups -= 1
            await socket.close()
            return socket
        link = _LinkSide(socket)
        for name, data in self.assets.items():
            for start in range(0, max(len(data), 1), wire.ASSET_CHUNK_BYTES):
                end = start + wire.ASSET_CHUNK_BYTES
                await link.send(wire.Asset(name, data[start:end], end >= len(data)))
        await link.send(self.hello)
        await link.send(wire.Cache(sequence=0, stored=b"".join(self._pages), reset=True))
        await link.send(self._load())
        self._links.append(link)
        try:
            async for frame in socket:
                if frame.type is WSMsgType.BINARY:
                    for message in wire.decode_down(frame.data):
                        await self._receive(link, message)
        finally:
            self._links.remove(link)
            self._running = [s for s in self._running if s.link is not link]
        return socket

    async def _receive(self, link: _LinkSide, message: wire.Down) -> None:
        match message:
            case wire.Submit():
                self.submitted.append(message)
                del self.submitted[:-1000]
                if self.poison(message):
                    self.drop_links()
                    return
                await self._submit(link, message)
            case wire.Abort(request):
                if sequence := link.live.get(request):
                    sequence.aborted = True
                    self._wake.set()
            case wire.SetRetention():
                self.retained.append(message)
                del self.retained[:-1000]
            case _:
                pass

    async def _submit(self, link: _LinkSide, submit: wire.Submit) -> None:
        num_prompt = len(submit.prompt) // 4
        page_hashes = wire.page_hashes(
            submit.prompt,
            page_size=self.hello.page_size,
            fingerprint=self.hello.fingerprint,
            cache_salt=submit.cache_salt,
            shared_tokens=submit.shared_tokens,
        )
        cached = 0
        for name in page_hashes[: (num_prompt - 1) // self.hello.page_size]:
            if name not in self._pages:
                break
            cached += self.hello.page_size
        if len(self._running) >= self.max_sequences:
            self.refused += 1
            await link.send(wire.Finished(request=submit.request, reason="refused", error="full", error_code="too_many"))
            return
        sequence = _Sequence(
            link=link,
            request=submit.request,
            words=iter(self.answer(submit.prompt, submit.sampling)),
            max_tokens=min(submit.sampling.max_tokens, self.hello.max_context - num_prompt),
            num_prompt=num_prompt,
            num_cached=cached,
            page_hashes=page_hashes,
            steps_to_first=self.prefill_steps,
            logprobs=submit.sampling.top_logprobs is not None,
        )
        link.live[submit.request] = sequence
        self._running.append(sequence)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._running:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(self.step_s)
            await self._go.wait()
            await self._step()

    async def _step(self) -> None:
        batch = self._running
        if not batch:
            return
        pieces: dict[_LinkSide, list[wire.Piece]] = {}
        finished: list[tuple[_Sequence, wire.FinishReason]] = []
        share = self.step_device_s / len(batch)
        self.busy_s += self.step_device_s
        for sequence in batch:
            sequence.device_s += share
            sequence.num_steps += 1
            if sequence.aborted:
                finished.append((sequence, "abort"))
                continue
            if sequence.num_output == 0:
                sequence.prefill_device_s += share
                sequence.steps_to_first -= 1
                if sequence.steps_to_first > 0:
                    continue
            count = min(self.tokens_per_step, sequence.max_tokens - sequence.num_output)
            new = list(islice(sequence.words, count))
            sequence.num_output += len(new)
            if new:
                logprobs = tuple(wire.TokenLogprob(word, -0.5, ((word, -0.5),)) for word in new) if sequence.logprobs else ()
                piece = wire.Piece(sequence.request, "".join(new), len(new), logprobs, self.confidence)
                pieces.setdefault(sequence.link, []).append(piece)
            if len(new) < count:
                finished.append((sequence, "stop"))
            elif sequence.num_output >= sequence.max_tokens:
                finished.append((sequence, "length"))
        stored, removed = self._commit(finished)
        await self._report(pieces, finished, len(batch), stored, removed)

    def _commit(self, finished: list[tuple[_Sequence, wire.FinishReason]]) -> tuple[bytes, bytes]:
        stored, removed = [], []
        for sequence, reason in finished:
            self.attributed_s += sequence.device_s
            self._running.remove(sequence)
            del sequence.link.live[sequence.request]
            if reason != "abort":
                for name in sequence.page_hashes:
                    if name not in self._pages:
                        stored.append(name)
                    self._pages[name] = None
                    self._pages.move_to_end(name)
        while self.free_pages < 0 and self._pages:
            removed.append(self._pages.popitem(last=False)[0])
        return b"".join(stored), b"".join(removed)

    async def _report(
        self,
        pieces: dict[_LinkSide, list[wire.Piece]],
        finished: list[tuple[_Sequence, wire.FinishReason]],
        batch: int,
        stored: bytes,
        removed: bytes,
    ) -> None:
        for link in tuple(self._links):
            messages: list[wire.Up] = [wire.Tokens(tuple(pieces[link]))] if link in pieces else []
            messages += [_finished(sequence, reason, batch) for sequence, reason in finished if sequence.link is link]
            if stored or removed:
                link.cache_sequence += 1 + self.skip_cache_frames
                self.skip_cache_frames = 0
                messages.append(wire.Cache(sequence=link.cache_sequence, stored=stored, removed=removed))
            if finished:
                messages.append(self._load())
            await link.send(*messages)

    def _load(self) -> wire.Load:
        running = len(self._running)
        return wire.Load(
            running=running,
            waiting=0,
            free_pages=self.free_pages,
            cached_pages=len(self._pages),
            num_pages=self.hello.num_pages,
            credit_sequences=self.max_sequences - running,
            credit_tokens=self.credit_tokens,
            busy_s=self.busy_s,
            idle_s=self.idle_s,
            attributed_s=self.attributed_s + sum(s.device_s for s in self._running),
            step_cost=(self.step_device_s, 0.0, 0.0, 0.0),
        )


def _finished(sequence: _Sequence, reason: wire.FinishReason, batch: int) -> wire.Finished:
    decode_s = sequence.device_s - sequence.prefill_device_s
    return wire.Finished(
        request=sequence.request,
        reason=reason,
        num_prompt_tokens=sequence.num_prompt,
        num_cached_tokens=sequence.num_cached,
        num_output_tokens=sequence.num_output,
        prefill_s=sequence.prefill_device_s,
        decode_s=decode_s,
        device_s=sequence.device_s,
        prefill_device_s=sequence.prefill_device_s,
        num_steps=sequence.num_steps,
        mean_batch=float(batch),
    )


def assets_of(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ASSETS if (directory / name).exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--model", help="its name; or its directory where that is not given, as for a real worker")
    parser.add_argument("--name", default="fake")
    parser.add_argument("--token-env")
    parser.add_argument("--max-sequences", type=int, default=32)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--tokens-per-step", type=int, default=1)
    parser.add_argument("--exit-with-parent", action="store_true")
    args, _ = parser.parse_known_args()
    if args.exit_with_parent:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    uvloop.run(_serve(args))


async def _serve(args: argparse.Namespace) -> None:
    directory = args.model_dir or Path(args.model)
    worker = FakeWorker(
        assets_of(directory),
        model=args.model if args.model_dir and args.model else directory.name,
        token=os.environ[args.token_env] if args.token_env else None,
        max_sequences=args.max_sequences,
        step_s=args.step_s,
        tokens_per_step=args.tokens_per_step,
    )
    await worker.start(args.listen)
    print(json.dumps({"ready": args.name}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
