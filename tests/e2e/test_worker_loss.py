"""A worker that dies: its streams end with an error event, what had not begun goes elsewhere or gets a 503; it comes back."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from gateway.policy.schema import Worker
from tests.fake_worker import FakeWorker
from tests.served import Served, ask, fake, serve, until


async def read_stream(served: Served, body: dict[str, object], began: asyncio.Event) -> list[str]:
    async with served.http.post(f"{served.url}/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        lines = []
        async for line in answer.content:
            if line.strip():
                lines.append(line.decode().removeprefix("data: ").strip())
                began.set()
        return lines


async def test_streams_of_a_lost_worker_end_with_an_error_event(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.01)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        began = asyncio.Event()
        stream = asyncio.create_task(read_stream(served, ask(stream=True, max_tokens=4000), began))
        await began.wait()
        worker.drop_links()
        lines = await stream
        assert json.loads(lines[-1])["error"]["code"] == "worker_lost"
        assert "[DONE]" not in lines
        await until(lambda: served.gateway.fleet.clients["nano-0"].healthy)
        assert (await served.chat())[0] == 200


async def test_unstarted_request_of_a_lost_worker_moves(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano", prefill_steps=10_000, step_s=0.005), "nano-1": fake("nano")}
    async with serve(tmp_path, workers=workers) as served:
        served.workers["nano-1"].hold()
        asked = [asyncio.create_task(served.chat(ask(f"n {n}"))) for n in range(6)]
        await until(lambda: workers["nano-0"].num_live + workers["nano-1"].num_live == 6)
        assert workers["nano-0"].num_live > 0
        workers["nano-0"].drop_links()
        workers["nano-1"].release()
        answers = await asyncio.gather(*asked)
        assert [status for status, _ in answers] == [200] * 6
        own = [body["usage"]["headway"] for _, body in answers]
        assert {answer["worker"] for answer in own} == {"nano-1"}
        assert "failover" in {answer["reason"] for answer in own}


POISON = 13
"""The `max_tokens` of a request that ends the worker that receives it."""
DIALECTS: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"max_tokens": POISON, "messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"max_output_tokens": POISON, "input": "x"},
    "/v1/messages": {"max_tokens": POISON, "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"max_tokens": POISON, "prompt": "x"},
}


def poisonable(count: int) -> dict[str, FakeWorker]:
    names = [f"nano-{number}" for number in range(count)]
    return {name: fake("nano", step_s=0.005, poison=lambda submit: submit.sampling.max_tokens == POISON) for name in names}


def num_received(workers: dict[str, FakeWorker]) -> int:
    return sum(submit.sampling.max_tokens == POISON for worker in workers.values() for submit in worker.submitted)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
async def test_a_request_that_ended_two_workers_is_refused_and_no_third_receives_it(
    tmp_path: Path, path: str, stream: bool
) -> None:
    workers = poisonable(3)
    async with serve(tmp_path, workers=workers) as served:
        body = {"model": "auto", "stream": stream, **DIALECTS[path]}
        async with served.http.post(f"{served.url}{path}", json=body) as answer:
            error = (await answer.json())["error"]
            assert answer.status == 400 and "not tried again" in error["message"]
            assert error["type"] == "invalid_request_error"
        assert num_received(workers) == 2
        assert (await served.chat())[0] == 200


async def test_others_on_workers_that_a_request_ended_are_answered(tmp_path: Path) -> None:
    workers = poisonable(3)
    for worker in workers.values():
        worker.prefill_steps = 40
    async with serve(tmp_path, workers=workers) as served:
        others = [asyncio.create_task(served.chat(ask(f"n {n}"))) for n in range(6)]
        await until(lambda: sum(worker.num_live for worker in workers.values()) == 6)
        status, _ = await served.chat(ask("x", max_tokens=POISON))
        assert status == 400 and num_received(workers) == 2
        assert [answered for answered, _ in await asyncio.gather(*others)] == [200] * 6


async def test_loss_of_the_only_worker_is_a_503_with_retry(tmp_path: Path) -> None:
    worker = fake("nano", prefill_steps=10_000, step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        asked = [asyncio.create_task(served.chat(ask(f"n {n}", stream=n % 2 == 0))) for n in range(4)]
        await until(lambda: worker.num_live == 4)
        worker.drop_links()
        for status, body in await asyncio.gather(*asked):
            assert status == 503
            assert body["error"]["code"] == "no_worker"


async def test_queued_request_of_a_lost_worker_gets_an_error(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=1)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        worker.hold()
        asked = [asyncio.create_task(served.chat(ask(f"n {n}"))) for n in range(3)]
        await until(lambda: len(served.gateway.queue) == 2)
        await worker.stop()
        for status, body in await asyncio.gather(*asked):
            assert (status, body["error"]["code"]) == (503, "no_worker")


async def test_a_killed_local_worker_is_started_again(tmp_path: Path) -> None:
    def command(name: str, worker: Worker, model: Path, socket: Path, threads: int) -> list[str]:
        run = [sys.executable, "-m", "tests.fake_worker", "--step-s", "0.01", "--exit-with-parent", "--name", name]
        return [*run, "--listen", f"unix://{socket}", "--model-dir", str(model)]

    async with serve(tmp_path, local={"nano-0": "nano"}, command=command, env=dict(os.environ)) as served:
        local = served.gateway.fleet.supervisor.workers["nano-0"]
        assert local.process is not None
        began = asyncio.Event()
        stream = asyncio.create_task(read_stream(served, ask(stream=True, max_tokens=4000), began))
        await began.wait()
        os.kill(local.process.pid, signal.SIGKILL)
        assert json.loads((await stream)[-1])["error"]["code"] == "worker_lost"
        await until(lambda: local.restarts == 1)
        async with served.http.get(f"{served.url}/readyz") as answer:
            assert answer.status == 503
            assert "nano-0" in (await answer.json())["missing"]
        await until(lambda: served.gateway.fleet.clients["nano-0"].healthy)
        assert (await served.chat())[0] == 200
        async with served.http.get(f"{served.url}/readyz") as answer:
            assert answer.status == 200
