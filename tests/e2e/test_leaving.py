"""A client that leaves frees its sequence and its pages, whatever it was waiting for; it is accounted once."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from gateway.ledger.rows import RequestRow
from tests.served import Served, ask, fake, serve, until


async def leave_after(served: Served, body: dict[str, object], *, first_bytes: bool) -> None:
    """Sends a request and closes the connection, at once or when the first bytes are there."""
    async with aiohttp.ClientSession() as http:
        if not first_bytes:
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0.3):
                    await http.post(f"{served.url}/v1/chat/completions", json=body)
            return
        answer = await http.post(f"{served.url}/v1/chat/completions", json=body)
        await answer.content.readany()
        answer.close()


async def assert_all_free(served: Served) -> None:
    for worker in served.workers.values():
        await until(lambda worker=worker: worker.num_live == 0)  # type: ignore[misc]
        assert worker.free_pages + worker.cached_pages == worker.hello.num_pages
    for link in served.gateway.fleet.clients.values():
        await until(lambda link=link: not link.streams)  # type: ignore[misc]
    assert len(served.gateway.queue) == 0


def aborted(served: Served) -> list[RequestRow]:
    return [row for row in served.ledger.rows if isinstance(row, RequestRow) and row.status == "client_gone"]


async def test_disconnect_in_a_stream_frees_its_sequence(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        await leave_after(served, ask(stream=True, max_tokens=4000), first_bytes=True)
        await assert_all_free(served)
        await until(lambda: len(aborted(served)) == 1)
        assert aborted(served)[0].device_s == pytest.approx(worker.busy_s)


async def test_disconnect_without_streaming_frees_its_sequence(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        await leave_after(served, ask(max_tokens=4000), first_bytes=False)
        await assert_all_free(served)
        await until(lambda: len(aborted(served)) == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_before_the_first_frame_frees_its_sequence(tmp_path: Path, stream: bool) -> None:
    worker = fake("nano", step_s=0.005, prefill_steps=10_000)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        await leave_after(served, ask(stream=stream), first_bytes=False)
        await assert_all_free(served)


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_in_the_queue_removes_the_request(tmp_path: Path, stream: bool) -> None:
    worker = fake("nano", max_sequences=1)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        worker.hold()
        running = asyncio.create_task(served.chat())
        await until(lambda: worker.num_live == 1)
        await leave_after(served, ask(stream=stream), first_bytes=False)
        await until(lambda: len(served.gateway.queue) == 0)
        worker.release()
        assert (await running)[0] == 200
        assert len(worker.submitted) == 1
        await assert_all_free(served)


async def test_many_disconnects_leave_nothing_behind(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.002, max_sequences=3)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:

        async def one(number: int) -> None:
            body = ask(f"number {number}", stream=number % 2 == 0, max_tokens=4000)
            await leave_after(served, body, first_bytes=False) if number % 2 else await served.chat(ask(max_tokens=5))

        await asyncio.gather(*map(one, range(12)))
        await assert_all_free(served)
        assert worker.refused == 0


async def test_requests_cut_off_by_a_drain_get_an_error_and_are_recorded(tmp_path: Path) -> None:
    worker = fake("nano", step_s=0.005)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        asked = asyncio.create_task(served.chat(ask(max_tokens=4000)))
        await until(lambda: worker.num_live == 1)
        await served.gateway.drain(0.05)
        rows = [row.status for row in served.ledger.rows if isinstance(row, RequestRow)]
        assert len(rows) == 1
        assert (await asked)[1]["error"]["code"] == rows[0]
