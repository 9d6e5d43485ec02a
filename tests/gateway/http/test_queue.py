"""Waiting: credits are never exceeded, what waits is bounded, and the event loop stays free."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.pipeline.dispatch_pass import BLOCKS_AFTER_S
from gateway.text.model_text import ModelText
from gateway.text.prompt_encoder import Prompt
from tests.served import Served, ask, fake, serve, until


async def test_a_worker_never_gets_more_than_its_credits(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=2)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        answers = await asyncio.gather(*(served.chat(ask(f"question {n}")) for n in range(20)))
        assert [status for status, _ in answers] == [200] * 20
        assert worker.refused == 0
        assert len(served.gateway.queue) == 0


@asynccontextmanager
async def full_queue(tmp_path: Path) -> AsyncIterator[Served]:
    """Two wait, and no more may; at the end all are answered."""
    worker = fake("nano", max_sequences=1)
    async with serve(tmp_path, workers={"nano-0": worker}, more="limits: {max_queued_requests: 2}") as served:
        worker.hold()
        waiting = [asyncio.create_task(served.chat(ask(f"question {n}"))) for n in range(3)]
        await until(lambda: len(served.gateway.queue) == 2)
        yield served
        worker.release()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3


async def test_full_queue_refuses_at_once_with_retry_after(tmp_path: Path) -> None:
    async with full_queue(tmp_path) as served, served.http.post(f"{served.url}/v1/chat/completions", json=ask()) as answer:
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1
        assert (await answer.json())["error"]["code"] == "overloaded"


async def test_request_refused_by_a_full_queue_is_not_tokenized_and_counts_as_an_slo_miss(tmp_path: Path) -> None:
    async with full_queue(tmp_path) as served:
        encoder, missed = served.gateway.pipeline.preparer.encoder, 'headway_slo_total{met="no",slo="interactive"} 1.0'
        encode = encoder.encode

        async def must_not(*_: object, **__: object) -> dict[str, Prompt]:
            raise AssertionError("the prompt was tokenized")

        encoder.encode = must_not  # type: ignore[method-assign]
        status, body = await served.chat()
        assert status == 429 and "2 requests with" in body["error"]["message"]
        encoder.encode = encode  # type: ignore[method-assign]
        async with served.http.get(f"{served.url}/metrics") as answer:
            assert missed in (await answer.text()).splitlines()


async def test_request_that_waits_past_the_limit_is_refused(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=1)
    async with serve(tmp_path, workers={"nano-0": worker}, more="limits: {max_queue_s: 0.2}") as served:
        worker.hold()
        first = asyncio.create_task(served.chat())
        await until(lambda: worker.num_live == 1)
        status, body = await served.chat()
        assert status == 429
        assert "no worker had capacity" in body["error"]["message"]
        worker.release()
        assert (await first)[0] == 200


async def test_a_stream_that_waits_gets_comments_and_then_its_answer(tmp_path: Path) -> None:
    worker = fake("nano")
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        served.gateway.chat._comment_every_s = 0.05
        worker.hold()
        async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(stream=True)) as answer:
            assert answer.status == 200
            assert await answer.content.readline() == b": waiting\n"
            worker.release()
            rest = await answer.content.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert rest.count(b'"role":"assistant"') == 1


async def test_a_failure_after_a_comment_is_an_error_event(tmp_path: Path) -> None:
    worker = fake("nano")
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        served.gateway.chat._comment_every_s = 0.05
        worker.hold()
        async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(stream=True)) as answer:
            assert await answer.content.readline() == b": waiting\n"
            worker.drop_links()
            rest = await answer.content.read()
        assert b'"code":"no_worker"' in rest
        assert b"[DONE]" not in rest


LONG = "some words of a long text " * 8_000
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": LONG}}


@pytest.mark.parametrize(
    "body",
    [
        ask(LONG),
        ask(tools=[{"type": "function", "function": {"name": "f", "description": LONG}}]),
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"enum": [LONG]}}}}}]),
        ask(messages=[{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "a", "content": ""}]),
    ],
)
async def test_long_text_is_tokenized_off_the_event_loop_which_goes_on_meanwhile(tmp_path: Path, body: dict[str, Any]) -> None:
    """No clock: the loop must have turned many times between the start and the end of the one long call."""
    turns = 0
    seen: list[tuple[int, int]] = []
    async with serve(tmp_path) as served:
        text = next(client.text for client in served.gateway.fleet.clients.values())
        assert text is not None
        encode = text.encode

        def watched(chars: str) -> "object":
            before = turns
            ids = encode(chars)
            seen.append((threading.get_ident(), turns - before))
            return ids

        for client in served.gateway.fleet.clients.values():
            assert isinstance(client.text, ModelText)
            client.text.encode = watched  # type: ignore[method-assign,assignment]

        async def spin() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        spinner = asyncio.create_task(spin())
        status, answer = await served.chat(body)
        spinner.cancel()
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    thread, turned = seen[0]
    assert thread != threading.get_ident()
    assert turned > 10


async def test_a_worker_that_comes_up_while_a_request_waits_does_not_get_it_without_a_prompt(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano", max_sequences=1), "nano-1": fake("nano")}
    async with serve(tmp_path, workers=workers) as served:
        links = served.gateway.fleet.clients
        workers["nano-0"].hold()
        workers["nano-1"].num_hang_ups = 1_000_000
        workers["nano-1"].drop_links()
        await until(lambda: not links["nano-1"].healthy)
        asked = [asyncio.create_task(served.chat(ask(f"n {n}"))) for n in range(2)]
        await until(lambda: len(served.gateway.queue) == 1)
        workers["nano-1"].num_hang_ups = 0
        await until(lambda: links["nano-1"].healthy)
        workers["nano-0"].release()
        answers = await asyncio.wait_for(asyncio.gather(*asked), 20)
        assert [(status, body["usage"]["headway"]["worker"]) for status, body in answers] == [(200, "nano-0")] * 2


async def test_long_prompt_that_waits_for_credits_is_not_overtaken(tmp_path: Path) -> None:
    worker = fake("nano", credit_tokens=60)
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        worker.hold()
        tasks = [asyncio.create_task(served.chat(ask("first")))]
        await until(lambda: worker.num_live == 1)
        tasks.append(asyncio.create_task(served.chat(ask("lamp " * 200))))
        await until(lambda: len(served.gateway.queue) == 1)
        await asyncio.sleep(2 * BLOCKS_AFTER_S)
        tasks.append(asyncio.create_task(served.chat(ask("short"))))
        await until(lambda: len(served.gateway.queue) == 2)
        worker.release()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 3
        lengths = [len(submit.prompt) // 4 for submit in worker.submitted]
        assert lengths[1] == max(lengths) > 60 > lengths[2]


TENANTS = "tenants: {ash: {keys: [key-of-ash]}, oak: {keys: [key-of-oak]}}"


async def test_flooding_tenant_leaves_a_seat_to_an_active_tenant(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=8)
    async with serve(tmp_path, workers={"nano-0": worker}, more=TENANTS) as served:

        async def post(tenant: str, number: int) -> int:
            headers, body = {"authorization": f"Bearer key-of-{tenant}"}, ask(f"question {number}")
            async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
                return answer.status

        assert await post("ash", 0) == 200
        worker.hold()
        flood = [asyncio.create_task(post("oak", number)) for number in range(20)]
        await until(lambda: worker.num_live + len(served.gateway.queue) == 20)
        assert worker.num_live == 7
        asked = asyncio.create_task(post("ash", 1))
        await until(lambda: worker.num_live == 8)
        assert worker.submitted[-1].cache_salt == "ash"
        worker.release()
        assert await asyncio.gather(*flood, asked) == [200] * 21


async def test_reserved_seat_is_found_behind_any_number_of_waiting_requests(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=8)
    async with serve(tmp_path, workers={"nano-0": worker}, more=TENANTS) as served:

        async def post(tenant: str, number: int, text: str = "question") -> int:
            headers, body = {"authorization": f"Bearer key-of-{tenant}"}, ask(f"{text} {number}")
            async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
                return answer.status

        worker.hold()
        first = [asyncio.create_task(post("oak", 0)), asyncio.create_task(post("ash", 0, "lamp " * 300))]
        await until(lambda: worker.num_live == 2)
        flood = [asyncio.create_task(post("oak", number)) for number in range(1, 60)]
        await until(lambda: worker.num_live + len(served.gateway.queue) == 61)
        # What ash had was longer, so that all of oak's stand before it.
        served.gateway.queue._work |= {"ash": 1e6}
        asked = asyncio.create_task(post("ash", 1))
        await until(lambda: worker.num_live == 8)
        assert worker.submitted[-1].cache_salt == "ash"
        worker.release()
        assert await asyncio.gather(*first, *flood, asked) == [200] * 62
