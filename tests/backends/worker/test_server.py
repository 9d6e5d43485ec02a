"""A worker over a real socket: every submit ends once, links come and go, and time adds up."""

import array
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from backends import wire
from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.worker.address import Address
from backends.worker.link_handler import Outgoing
from backends.worker.send_buffer import SendBuffer
from backends.worker.server import GatewayLink, Server
from backends.worker.worker import Worker
from tests.backends.conftest import MakeCheckpoint
from tests.backends.engine.test_engine import said
from tests.backends.fakes import FakeRunner, LetterDecoder, hello, limits

FILES = {"tokenizer.json": b"x" * (wire.ASSET_CHUNK_BYTES + 5), "config.json": b"{}"}
TOKEN = {"Authorization": "Bearer secret"}


class Gateway:
    """One link, as a gateway sees it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.assets: dict[str, bytes] = {}
        self.hello: wire.Hello | None = None
        self.text: dict[int, str] = {}
        self.finished: dict[int, wire.Finished] = {}
        self.resident: set[bytes] = set()
        self.cache_sequence = 0
        self.load: wire.Load | None = None

    async def submit(self, request: int, prompt: list[int], **sampling: object) -> None:
        options = wire.Sampling(**{"max_tokens": 8, **sampling})  # type: ignore[arg-type]
        await self.send(wire.Submit(request=request, prompt=array.array("I", prompt).tobytes(), sampling=options))

    async def send(self, message: wire.Down) -> None:
        await self.socket.send_bytes(wire.encode(message))

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not done():
                for message in wire.decode_up(await self.socket.receive_bytes()):
                    self.take(message)

    async def closed(self) -> tuple[int | None, str]:
        async with asyncio.timeout(60):
            while True:
                message = await self.socket.receive()
                if message.type is aiohttp.WSMsgType.CLOSE:
                    return message.data, message.extra or ""
                assert message.type is aiohttp.WSMsgType.BINARY

    def take(self, message: wire.Up) -> None:
        match message:
            case wire.Asset(name, data):
                assert self.hello is None
                self.assets[name] = self.assets.get(name, b"") + data
            case wire.Hello():
                self.hello = message
            case wire.Tokens(pieces):
                for piece in pieces:
                    self.text[piece.request] = self.text.get(piece.request, "") + piece.text
            case wire.Finished():
                assert message.request not in self.finished
                self.finished[message.request] = message
            case wire.Cache():
                assert message.sequence == self.cache_sequence and message.reset == (message.sequence == 0)
                self.cache_sequence += 1
                self.resident -= set(wire.split_hashes(message.removed))
                self.resident |= set(wire.split_hashes(message.stored))
            case wire.Load():
                self.load = message


class RealClock:
    """Remembers when it was first and last looked at."""

    first_ns = last_ns = 0

    def __call__(self) -> int:
        self.last_ns = time.perf_counter_ns()
        self.first_ns = self.first_ns or self.last_ns
        return self.last_ns


class Rig:
    def __init__(self, of: RequestLimits, path: Path) -> None:
        self.limits = of
        self.runner = FakeRunner(of, pause_s=0.0003)
        self.clock = RealClock()
        self.engine = Engine(self.runner, LetterDecoder(), of, clock_ns=self.clock, rng=random.Random(0))
        self.worker = Worker(self.engine, hello(of), FILES, token="secret")
        self.path = path
        self.sessions: list[aiohttp.ClientSession] = []

    def session(self) -> aiohttp.ClientSession:
        self.sessions.append(aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.path)), headers=TOKEN))
        return self.sessions[-1]

    async def link(self) -> Gateway:
        gateway = Gateway(await self.session().ws_connect("http://worker/link"))
        await gateway.until(lambda: gateway.load)
        return gateway

    async def idle(self) -> None:
        """Until nothing runs; then every page is free or cached."""
        async with asyncio.timeout(60):
            while self.engine.has_work:  # noqa: ASYNC110 - the engine knows no event loop
                await asyncio.sleep(0.002)
        assert self.engine.pool.num_free + self.engine.pool.num_cached == self.engine.pool.num_pages


@asynccontextmanager
async def rig(path: Path, **changed: int) -> AsyncIterator[Rig]:
    made = Rig(limits(**changed), path / "worker.sock")
    await made.worker.open(Address(path=str(made.path)))
    try:
        yield made
    finally:
        made.runner.gate.set()
        for session in made.sessions:
            await session.close()
        await made.worker.close()


async def test_a_link_begins_with_assets_hello_residents_and_load(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        assert gateway.assets == FILES and gateway.hello == hello(worker.limits)
        assert gateway.cache_sequence == 1 and not gateway.resident
        assert gateway.load is not None and gateway.load.credit_sequences == worker.limits.max_sequences
        assert gateway.load.credit_tokens == worker.limits.longest


async def test_a_submit_streams_its_text_and_finishes_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        for request in range(4):
            await gateway.submit(request, [request + 1] * 9)
        await gateway.until(lambda: len(gateway.finished) == 4)
        assert gateway.text == {request: said([request + 1] * 9, 8) for request in range(4)}
        assert all(f.num_prompt_tokens == 9 and f.device_s > 0 for f in gateway.finished.values())
        await worker.idle()
        assert gateway.resident == set(worker.engine.index.page_hashes())


async def test_second_gateway_receives_residency_and_has_its_own_request_numbers(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        first = await worker.link()
        await first.submit(1, [5] * 20)
        await first.until(lambda: first.finished)
        second = await worker.link()
        assert second.resident == first.resident != set()
        await first.submit(2, [6] * 9)
        await second.submit(2, [7] * 9)
        await first.until(lambda: 2 in first.finished)
        await second.until(lambda: 2 in second.finished)
        assert first.text[2] == said([6] * 9, 8) and second.text[2] == said([7] * 9, 8)
        page_hashes = set(worker.engine.index.page_hashes())
        await first.until(lambda: first.resident == page_hashes)
        await second.until(lambda: second.resident == page_hashes)


async def test_credits_are_shared_between_gateways(tmp_path: Path) -> None:
    async with rig(tmp_path, max_sequences=5) as worker:
        first, second = await worker.link(), await worker.link()
        await first.until(lambda: first.load and first.load.credit_sequences == 3)
        assert second.load is not None and second.load.credit_sequences == 2


async def test_a_prompt_that_never_fits_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        await gateway.submit(1, [1] * 500)
        await gateway.submit(2, [1, 96_000])
        await gateway.until(lambda: len(gateway.finished) == 2)
        assert [gateway.finished[n].error_code for n in (1, 2)] == ["too_long", "bad_prompt"]
        assert "500" in gateway.finished[1].error


async def test_an_abort_ends_a_sequence_within_a_step(tmp_path: Path) -> None:
    async with rig(tmp_path, max_context=100_000, num_pages=30_000) as worker:
        gateway = await worker.link()
        await gateway.submit(1, [1] * 9, max_tokens=90_000, ignore_eos=True)
        await gateway.until(lambda: len(gateway.text.get(1, "")) > 20)
        await gateway.send(wire.Abort(1))
        await gateway.until(lambda: gateway.finished)
        assert gateway.finished[1].reason == "abort"
        assert gateway.finished[1].num_output_tokens < 90_000
        await worker.idle()


async def test_lost_link_aborts_only_its_own_requests(tmp_path: Path) -> None:
    async with rig(tmp_path, max_context=100_000, num_pages=30_000) as worker:
        staying, leaving = await worker.link(), await worker.link()
        await staying.submit(1, [1] * 9, max_tokens=400, ignore_eos=True)
        await leaving.submit(1, [2] * 9, max_tokens=90_000, ignore_eos=True)
        await leaving.until(lambda: leaving.text)
        await leaving.socket.close()
        await staying.until(lambda: staying.finished)
        assert staying.finished[1].reason == "length" and staying.finished[1].num_output_tokens == 400
        await worker.idle()
        await staying.until(lambda: staying.load and staying.load.credit_sequences == worker.limits.max_sequences)


UPWARD = wire.encode(wire.Tokens(()))


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x93\x01\x02\x03", UPWARD])
async def test_invalid_message_closes_the_link_with_the_reason(tmp_path: Path, frame: bytes) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        await gateway.submit(1, [1] * 9, max_tokens=150, ignore_eos=True)
        await gateway.socket.send_bytes(frame)
        code, reason = await gateway.closed()
        assert code == aiohttp.WSCloseCode.POLICY_VIOLATION and reason.startswith("no such message")
        await worker.idle()


async def test_text_frames_and_reused_numbers_close_the_link(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        await gateway.socket.send_str("hello")
        assert (await gateway.closed())[1] == "frames are binary msgpack"
        worker.runner.gate.clear()
        again = await worker.link()
        await again.submit(7, [1] * 9, max_tokens=150, ignore_eos=True)
        await again.submit(7, [1] * 9)
        worker.runner.gate.set()
        assert (await again.closed())[1] == "request 7 was submitted while it runs"
        await worker.idle()


async def test_link_without_the_token_gets_only_health(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        session = worker.session()
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": ""}):
            for path in ("link", "metrics"):
                assert (await session.get(f"http://worker/{path}", headers=headers)).status == 401
            assert (await session.get("http://worker/health", headers=headers)).status == 200


async def test_a_failing_step_closes_links_and_shows_in_health(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        worker.runner.fails = True
        await gateway.submit(1, [1, 2])
        assert (await gateway.closed())[1] == "the engine failed"
        health = await worker.session().get("http://worker/health")
        assert health.status == 503 and "told to fail" in await health.text()
        assert isinstance(worker.worker.failure.result(), RuntimeError)
    assert "told to fail" in capsys.readouterr().err


async def test_metrics_have_their_vllm_twins(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        await gateway.submit(1, [1] * 9)
        await gateway.until(lambda: gateway.finished)
        text = await (await worker.session().get("http://worker/metrics")).text()
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            assert f'{name}{{model_name="fake"}} 0.0' in text
        assert 'headway_worker_prompt_tokens_total{model_name="fake"} 9.0' in text


async def test_busy_and_idle_are_the_wall_time_and_all_of_busy_is_charged(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        for request in range(12):
            await gateway.submit(request, [request + 1] * 20, max_tokens=20, ignore_eos=True)
            await gateway.until(lambda request=request: len(gateway.finished) > request)  # type: ignore[misc]
            if request % 4 == 0:
                await asyncio.sleep(0.05)
        await gateway.until(lambda: gateway.load and gateway.load.running == 0)
        load = gateway.load
        assert load is not None and load.attributed_s == load.busy_s
        assert sum(f.device_s for f in gateway.finished.values()) == pytest.approx(load.busy_s, rel=1e-9)
    busy_meter = worker.engine.busy_meter
    assert busy_meter.busy_ns + busy_meter.idle_ns == worker.clock.last_ns - worker.clock.first_ns
    assert busy_meter.idle_ns >= 3 * 50_000_000 and busy_meter.attributed_ns == busy_meter.busy_ns


async def test_idle_worker_reports_its_idle_time(tmp_path: Path) -> None:
    async with rig(tmp_path) as worker:
        gateway = await worker.link()
        assert gateway.load is not None
        idle_s = gateway.load.idle_s
        await gateway.until(lambda: gateway.load and gateway.load.idle_s > idle_s)
        assert gateway.load.busy_s == gateway.load.attributed_s == 0


async def test_gateway_that_does_not_read_is_disconnected() -> None:
    of = limits()
    server = Server(hello(of), {}, CollectorRegistry(), post=lambda command: None)
    transport = Transport()
    server.links[1] = GatewayLink(SendBuffer(max_bytes=8), transport)
    server.deliver([Outgoing(1, [b"first"])])
    assert not transport.aborted
    server.deliver([Outgoing(1, [b"second"]), Outgoing(2, [b"nobody"])])
    assert transport.aborted


class Transport(asyncio.Transport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_the_command_serves_a_checkpoint_until_its_parent_is_gone(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    address = tmp_path / "real.sock"
    command = ("-m", "backends", "--model", str(make_checkpoint()), "--name", "tiny", "--listen", f"unix://{address}")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--exit-with-parent", stdin=pipe, stdout=pipe, stderr=pipe, cwd=Path(__file__).parents[3]
    )
    assert process.stdin is not None and process.stdout is not None
    async with asyncio.timeout(60):
        ready = json.loads(await process.stdout.readline())["ready"]
        assert ready["listen"] == f"unix://{address}" and ready["name"] == "tiny"
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(address))) as session:
            gateway = Gateway(await session.ws_connect("http://worker/link"))
            await gateway.submit(1, [5, 6, 7], max_tokens=4, ignore_eos=True)
            await gateway.until(lambda: gateway.finished)
        assert gateway.finished[1].num_output_tokens == 4 and "tokenizer.json" in gateway.assets
        process.stdin.close()
        assert await process.wait() == 0
    assert not address.exists() or address.is_socket()


async def test_command_names_the_problem_of_a_checkpoint(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backends", "--model", str(tmp_path), "--listen", f"unix://{tmp_path}/x.sock",
        stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 1 and b"has no config.json" in errors and b"Traceback" not in errors
