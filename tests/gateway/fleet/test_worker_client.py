from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from backends import wire
from gateway.errors import WorkerLost
from gateway.fleet.worker_client import WorkerClient, WorkerEvents
from gateway.scheduling.kv_index import KvIndex
from tests.fake_worker import FakeWorker, expected_text
from tests.served import fake, until

PROMPT = np.arange(10, 50, dtype="<u4").tobytes()


@asynccontextmanager
async def linked(
    worker: FakeWorker, folder: Path, kv_index: KvIndex | None = None, token: str | None = None
) -> AsyncIterator[WorkerClient]:
    index = KvIndex(1000) if kv_index is None else kv_index
    events = WorkerEvents(cache=index.apply, load=lambda *_: None, finished=lambda *_: None, state=lambda _: None)
    await worker.start(f"unix://{folder}/w.sock")
    client = WorkerClient("w", f"unix://{folder}/w.sock", events, token=token)
    client.start()
    try:
        yield client
    finally:
        await client.stop()
        await worker.stop()


def sampling(max_tokens: int = 5) -> wire.Sampling:
    return wire.Sampling(max_tokens=max_tokens)


async def test_stream_yields_its_pieces_and_exactly_one_end(tmp_path: Path) -> None:
    async with linked(fake(), tmp_path) as client:
        await until(lambda: client.healthy)
        stream = client.submit(PROMPT, sampling(5), uncached_tokens=40)
        text = "".join([piece.text async for piece in stream])
        assert text == expected_text(PROMPT, 5)
        assert stream.finished is not None
        assert (stream.finished.reason, stream.finished.num_prompt_tokens) == ("length", 40)
        assert not client.streams
        assert not client.credits.live


async def test_the_tokenizer_comes_over_the_link(tmp_path: Path) -> None:
    async with linked(fake(), tmp_path) as client:
        await until(lambda: client.healthy)
        assert client.text is not None
        assert len(client.text.encode("hello there")) > 1


async def test_scores_are_sent_after_a_delay_or_before_the_next_submit(tmp_path: Path) -> None:
    worker = fake()
    async with linked(worker, tmp_path) as client:
        await until(lambda: client.healthy)
        for score in (0.5, 0.25):
            client.set_retention("chain", score)
        await until(lambda: len(worker.retained) == 2)
        client.set_retention("chain", 0.0)
        client.submit(PROMPT, sampling(), uncached_tokens=40)
        await until(lambda: len(worker.submitted) == 1)
        assert [one.score for one in worker.retained] == [0.5, 0.25, 0.0]


async def test_a_dropped_link_ends_every_stream_once_and_comes_back(tmp_path: Path) -> None:
    worker = fake(step_s=0.01)
    async with linked(worker, tmp_path) as client:
        await until(lambda: client.healthy)
        streams = [client.submit(PROMPT, sampling(10_000), uncached_tokens=40) for _ in range(3)]
        await until(lambda: all(stream.pieces for stream in streams))
        worker.drop_links()
        for stream in streams:
            async for _ in stream:
                pass
            assert stream.finished is not None
            assert stream.finished.error_code == "worker_lost"
        with pytest.raises(WorkerLost):
            client.submit(PROMPT, sampling(), uncached_tokens=40)
        await until(lambda: client.healthy)
        await until(lambda: worker.num_live == 0)
        again = client.submit(PROMPT, sampling(2), uncached_tokens=40)
        assert "".join([piece.text async for piece in again]) == expected_text(PROMPT, 2)


async def test_an_aborted_stream_ends_and_frees_its_pages(tmp_path: Path) -> None:
    worker = fake(step_s=0.01)
    async with linked(worker, tmp_path) as client:
        await until(lambda: client.healthy)
        stream = client.submit(PROMPT, sampling(10_000), uncached_tokens=40)
        await stream.wait()
        stream.abort()
        await until(lambda: stream.finished is not None)
        assert stream.finished is not None
        assert stream.finished.reason == "abort"
        assert worker.free_pages + worker.cached_pages == worker.hello.num_pages


async def test_a_gap_in_cache_frames_reconnects_and_resyncs(tmp_path: Path) -> None:
    worker, kv_index = fake(), KvIndex(1000)
    async with linked(worker, tmp_path, kv_index) as client:
        await until(lambda: client.healthy)
        worker.skip_cache_frames = 1
        stream = client.submit(PROMPT, sampling(2), uncached_tokens=40)
        await until(lambda: stream.finished is not None)
        await until(lambda: kv_index.num_pages("w") == worker.cached_pages == 2)


async def test_wrong_link_token_is_logged_and_retried(tmp_path: Path) -> None:
    async with linked(fake(token="secret"), tmp_path, token="wrong") as client:
        await until(lambda: "401" in client.problem)
        assert not client.healthy


async def test_right_link_token_is_accepted(tmp_path: Path) -> None:
    async with linked(fake(token="secret"), tmp_path, token="secret") as client:
        await until(lambda: client.healthy)


async def test_pieces_for_a_slow_reader_are_joined(tmp_path: Path) -> None:
    async with linked(fake(), tmp_path) as client:
        await until(lambda: client.healthy)
        stream = client.submit(PROMPT, sampling(1000), uncached_tokens=40)
        await stream.wait_end()
        pieces = stream.take()
        assert len(pieces) <= 256
        assert "".join(piece.text for piece in pieces) == expected_text(PROMPT, 1000)
        assert sum(piece.num_tokens for piece in pieces) == 1000


async def test_worker_that_closes_before_its_hello_is_retried(tmp_path: Path) -> None:
    worker = fake()
    worker.num_hang_ups = 2
    async with linked(worker, tmp_path) as client:
        await until(lambda: client.healthy)
        assert worker.num_hang_ups == 0


@pytest.mark.parametrize(
    "wrong", [{"device_s": float("nan")}, {"decode_s": -5.0}, {"num_output_tokens": -1}, {"queue_s": 1e300}]
)
async def test_finished_with_impossible_numbers_is_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    worker = fake()
    async with linked(worker, tmp_path) as client:
        await until(lambda: client.healthy)
        worker.hold()
        stream = client.submit(PROMPT, sampling(5), uncached_tokens=40)
        await until(lambda: worker.num_live == 1)
        (side,) = worker._links
        await side.send(wire.Finished(request=stream.request, reason="stop", **wrong))  # type: ignore[arg-type]
        await until(lambda: stream.finished is not None)
        assert stream.finished and stream.finished.error_code == "worker_lost"
        assert "out of range" in stream.finished.error
        worker.release()
        await until(lambda: client.healthy)
