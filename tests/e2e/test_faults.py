"""Faults, caused for real: what a caller is told, what goes on, and that nothing is left behind (docs/faults.md)."""

import asyncio
import io
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.ledger.rows import RequestRow
from gateway.policy.schema import Worker
from tests.served import Served, ask, fake, serve, until

PATIENCE = "limits: {max_silence_s: 0.4}"


async def stream(served: Served, began: asyncio.Event, **changes: Any) -> list[str]:
    """The data of the events of a long stream."""
    body = ask(stream=True, max_tokens=4000) | changes
    async with served.http.post(f"{served.url}/v1/chat/completions", json=body) as answer:
        lines = []
        async for line in answer.content:
            if line.startswith(b"data: "):
                lines.append(line[6:].decode().strip())
                began.set()
        return lines


def rows(served: Served) -> list[RequestRow]:
    return [row for row in served.ledger.rows if isinstance(row, RequestRow)]


async def test_hung_worker_is_dropped_and_its_streams_get_an_error(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}, more=PATIENCE) as served:
        began = asyncio.Event()
        asked = asyncio.create_task(stream(served, began))
        await began.wait()
        worker.hold()
        error = json.loads((await asked)[-1])["error"]
        assert error["code"] == "worker_lost" and "made no step for 0.4 s" in error["message"]
        worker.release()
        await until(lambda: served.gateway.fleet.clients["nano-0"].healthy)
        assert (await served.chat())[0] == 200
        await until(lambda: len(rows(served)) == 2)


async def test_unstarted_request_of_a_hung_worker_moves(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano"), "nano-1": fake("nano")}
    async with serve(tmp_path, workers=workers, more=PATIENCE) as served:
        for worker in workers.values():
            worker.hold()
        asked = asyncio.create_task(served.chat())
        await until(lambda: any(worker.num_live for worker in workers.values()))
        idle = next(worker for worker in workers.values() if not worker.num_live)
        idle.release()
        status, body = await asked
        assert (status, body["usage"]["headway"]["reason"]) == (200, "failover")


def local_fakes(name: str, worker: Worker, model: Path, socket: Path, threads: int) -> list[str]:
    run = [sys.executable, "-m", "tests.fake_worker", "--step-s", "0.01", "--exit-with-parent", "--name", name]
    return [*run, "--listen", f"unix://{socket}", "--model-dir", str(model)]


async def test_hung_local_worker_is_killed_and_restarted(tmp_path: Path) -> None:
    started = serve(tmp_path, local={"nano-0": "nano"}, command=local_fakes, env=dict(os.environ), more=PATIENCE)
    async with started as served:
        local = served.gateway.fleet.supervisor.workers["nano-0"]
        assert local.process is not None
        began = asyncio.Event()
        asked = asyncio.create_task(stream(served, began))
        await began.wait()
        os.kill(local.process.pid, signal.SIGSTOP)
        assert json.loads((await asked)[-1])["error"]["code"] == "worker_lost"
        await until(lambda: local.restarts == 1, 60)
        await until(lambda: served.gateway.fleet.clients["nano-0"].healthy, 60)
        assert (await served.chat())[0] == 200


@pytest.mark.timeout(200)
async def test_worker_without_memory_for_its_pages_reports_it_and_is_retried(tmp_path: Path) -> None:
    def command(name: str, worker: Worker, model: Path, socket: Path, threads: int) -> list[str]:
        run = [sys.executable, "-m", "backends", "--exit-with-parent", "--name", name, "--kv-tokens", "100000000000"]
        return [*run, "--listen", f"unix://{socket}", "--model", str(model)]

    started = serve(tmp_path, local={"pico-0": "pico"}, command=command, env=dict(os.environ), wait_for_local=False)
    async with started as served:
        local = served.gateway.fleet.supervisor.workers["pico-0"]
        await until(lambda: any("ask for fewer with --kv-tokens" in line for line in local.last_lines), 150)
        await until(lambda: local.restarts >= 1, 150)
        async with served.http.get(f"{served.url}/readyz") as answer:
            assert (answer.status, (await answer.json())["missing"]) == (503, {"pico-0": "exited with 1"})
        status, body = await served.chat()
        assert (status, body["error"]["code"]) == (503, "no_worker")


@pytest.mark.parametrize("frame", [b"\xc1", b"", b"\x81\xa4type\xa6tokens", b"\x93\x01"])
async def test_corrupt_frame_ends_running_requests_and_the_link_reconnects(tmp_path: Path, frame: bytes) -> None:
    worker = fake("nano", step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        began = asyncio.Event()
        asked = asyncio.create_task(stream(served, began))
        await began.wait()
        await worker.send_garbage(frame)
        assert json.loads((await asked)[-1])["error"]["code"] == "worker_lost"
        await until(lambda: served.gateway.fleet.clients["nano-0"].healthy)
        assert (await served.chat())[0] == 200
        await until(lambda: worker.num_live == 0)


async def test_client_that_does_not_read_delays_no_other_and_is_freed_on_disconnect(tmp_path: Path) -> None:
    worker = fake("nano", max_context=100_000, num_pages=10_000, tokens_per_step=50, step_s=0.001)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        body = json.dumps(ask(stream=True, max_tokens=90_000)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
            await loop.sock_sendall(slow, head.encode() + body)
            await until(lambda: worker.num_live == 1)
            for number in range(3):
                assert (await served.chat(ask(f"meanwhile {number}")))[0] == 200
        await until(lambda: worker.num_live == 0 and not served.gateway.fleet.clients["nano-0"].streams)
        assert worker.free_pages + worker.cached_pages == worker.hello.num_pages
        await until(lambda: len(rows(served)) == 4)


@pytest.mark.timeout(200)
async def test_bodies_of_ten_megabytes_delay_no_other_request(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:

        async def send(size: int) -> tuple[int, Any]:
            body = io.BytesIO(json.dumps(ask("x" * size)).encode())
            headers = {"content-type": "application/json"}
            async with served.http.post(f"{served.url}/v1/chat/completions", data=body, headers=headers) as answer:
                return answer.status, await answer.json()

        asked = [asyncio.create_task(send(9_900_000)) for _ in range(2)]
        for number in range(3):
            assert (await served.chat(ask(f"meanwhile {number}")))[0] == 200
        for status, body in await asyncio.gather(*asked):
            assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        status, body = await send(10_000_000)
        assert (status, body["error"]["code"]) == (413, "body_too_large")


@pytest.fixture
def many_files() -> Iterator[int]:
    """How many connections may be opened, each with both ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 6_000) if hard != resource.RLIM_INFINITY else 6_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield min(2_000, (max(soft, wanted) - 500) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(200)
async def test_two_thousand_idle_connections_are_no_load(tmp_path: Path, many_files: int) -> None:
    async with serve(tmp_path) as served:
        port = int(served.url.rsplit(":", 1)[1])
        loop = asyncio.get_running_loop()
        idle: list[socket.socket] = []
        try:
            for _ in range(many_files):
                one = socket.socket()
                idle.append(one)
                one.setblocking(False)
                await loop.sock_connect(one, ("127.0.0.1", port))
            async with aiohttp.ClientSession() as http:  # none of the connections that are there
                for number in range(3):
                    body = ask(f"number {number}", stream=bool(number % 2))
                    async with http.post(f"{served.url}/v1/chat/completions", json=body) as answer:
                        assert answer.status == 200
                        await answer.read()
            for one in idle:  # nobody had to be cut off for that
                with pytest.raises(BlockingIOError):
                    one.recv(1)
        finally:
            for one in idle:
                one.close()


async def test_a_drain_lets_answers_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        began = asyncio.Event()
        asked = asyncio.create_task(stream(served, began, max_tokens=100))
        await began.wait()
        draining = asyncio.create_task(served.gateway.drain(60))
        await until(lambda: served.gateway.pipeline.preparer.stopping)
        status, body = await served.chat()
        assert (status, body["error"]["code"]) == (503, "no_worker") and "stopping" in body["error"]["message"]
        async with served.http.get(f"{served.url}/readyz") as answer:
            assert answer.status == 503
        assert (await asked)[-1] == "[DONE]"
        await draining
