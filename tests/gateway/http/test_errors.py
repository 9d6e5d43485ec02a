"""What a caller does wrong gets a clear 4xx in OpenAI's shape, on every endpoint, and leaves nothing behind."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BodyTooLarge, BodyTooSlow, Overloaded
from gateway.http.auth import KeylessBindError, check_bind
from gateway.http.body import BodyBudget, read_body
from gateway.pipeline.active_request import RequestContext
from gateway.policy.schema import Device, Model, Policy, Route, Worker
from tests.served import Served, ask, fake, serve, until

KEYED = """
tenants:
  alice: {keys: [key-of-alice]}
  bob: {keys: [key-of-bob], models: [small]}
limits: {max_body_bytes: 100000}
"""
HI = [{"role": "user", "content": "hi"}]

WRONG: list[tuple[dict[str, Any], int, str, str | None]] = [
    (ask(model="gpt-9"), 404, "model_not_found", "model"),
    (ask(messages="hi"), 400, "invalid_request", "messages"),
    (ask(messages=[{"role": "user", "content": 5}]), 400, "invalid_request", "messages[0].content"),
    (ask(max_tokens="many"), 400, "invalid_request", "max_tokens"),
    (ask(n=99), 400, "invalid_request", "n"),
    (ask(logit_bias={"5": 1}), 400, "invalid_request", "logit_bias"),
    (ask(reasoning_effort="low"), 400, "unsupported_parameter", "reasoning_effort"),
    (ask(surprise=True), 400, None, "surprise"),  # type: ignore[list-item]
    (ask("word " * 5000), 400, "context_length_exceeded", "messages"),
]


def assert_error(body: dict[str, Any], code: str | None, param: str | None = None) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert code is None or body["error"]["code"] == code
    assert param is None or body["error"]["param"] == param


def assert_nothing_left(served: Served) -> None:
    for worker in served.workers.values():
        assert worker.num_live == 0
        assert worker.free_pages + worker.cached_pages == worker.hello.num_pages
    assert len(served.gateway.queue) == 0
    assert all(not client.streams and not client.credits.live for client in served.gateway.fleet.clients.values())


async def test_invalid_request_names_the_problem(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        for body, status, code, param in WRONG:
            for stream in (False, True):
                got, answer = await served.chat(body | {"stream": stream})
                assert got == status, answer
                assert_error(answer, code, param)
        assert not any(worker.submitted for worker in served.workers.values())
        assert_nothing_left(served)


async def test_body_that_is_not_json_is_a_400(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        for data in (b"", b"{", b"[]", b"\xff\xfe", b'{"model": "auto"}', b'"x"'):
            async with served.http.post(f"{served.url}/v1/chat/completions", data=data) as answer:
                assert answer.status == 400
                assert_error(await answer.json(), None)


async def test_framework_errors_have_the_same_shape(tmp_path: Path) -> None:
    cases = [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/headway/explain", 405, "method_not_allowed"),
        ("GET", "/v1/headway/runs/none-such", 404, "not_found"),
        ("GET", "/v1/models/none-such", 404, "not_found"),
    ]
    async with serve(tmp_path) as served:
        for method, path, status, code in cases:
            async with served.http.request(method, served.url + path) as answer:
                assert answer.status == status
                assert_error(await answer.json(), code)


async def test_a_huge_body_is_refused_whether_or_not_its_length_is_announced(tmp_path: Path) -> None:
    async def chunks() -> Any:
        for _ in range(50):
            yield b"x" * 10_000

    async with serve(tmp_path, more=KEYED) as served:
        for path in ("/v1/chat/completions", "/v1/headway/explain"):
            for data in (b"x" * 200_000, chunks()):
                headers = {"authorization": "Bearer key-of-alice"}
                async with served.http.post(served.url + path, data=data, headers=headers) as answer:
                    assert answer.status == 413
                    assert_error(await answer.json(), "body_too_large")


async def test_keys_are_required_and_tenants_see_only_their_own_requests(tmp_path: Path) -> None:
    async with serve(tmp_path, more=KEYED) as served:
        for headers in (
            {},
            {"authorization": "Bearer nope"},
            {"authorization": "Basic key-of-alice"},
            {"x-api-key": "k" * 9000},
        ):
            for path in ("/v1/models", "/v1/headway/workers", "/v1/headway/runs/r1"):
                async with served.http.get(served.url + path, headers=headers) as answer:
                    assert answer.status == 401
                    assert_error(await answer.json(), "invalid_api_key")
            async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(), headers=headers) as answer:
                assert answer.status == 401
                assert_error(await answer.json(), "invalid_api_key")
        alice = {"authorization": "Bearer key-of-alice", "x-headway-run-id": "r1"}
        bob = {"x-api-key": "key-of-bob"}
        async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(), headers=alice) as answer:
            assert answer.status == 200
            assert answer.headers["x-headway-run-id"] == "r1"
        async with served.http.get(f"{served.url}/v1/headway/runs/r1", headers=alice) as answer:
            assert (await answer.json())["turns"] == 1
        async with served.http.get(f"{served.url}/v1/headway/runs/r1", headers=bob) as answer:
            assert answer.status == 404
        async with served.http.get(f"{served.url}/v1/models", headers=bob) as answer:
            assert {model["id"] for model in (await answer.json())["data"]} == {"auto", "small", "pico"}
        async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(model="nano"), headers=bob) as answer:
            assert answer.status == 403


async def test_tenants_never_share_cached_pages(tmp_path: Path) -> None:
    async with serve(tmp_path, more=KEYED) as served:
        body = ask("the same long prefix " * 20, model="pico")
        cached = []
        for key in ("key-of-alice", "key-of-alice", "key-of-bob"):
            headers = {"authorization": f"Bearer {key}"}
            async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
                cached.append(int(answer.headers["x-headway-cached-tokens"]))
        assert cached[0] == 0
        assert cached[1] > 0
        assert cached[2] == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_without_keys_only_loopback_may_be_bound(host: str) -> None:
    policy = Policy(
        version=1,
        devices={"cpu": Device(usd_per_hour=1)},
        tiers=("t",),
        models={"m": Model(path="m", tier="t")},
        workers={"w": Worker(model="m", device="cpu")},
        routes=(Route(name="r", candidates=("t",)),),
    )
    check_bind(policy, "127.0.0.1")
    with pytest.raises(KeylessBindError, match="tenants"):
        check_bind(policy, host)


async def test_a_body_that_breaks_off_is_a_400_and_is_counted(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        assert b'error_code="invalid_request",outcome="rejected",status="400"' in served.gateway.metrics.render()


async def test_body_that_does_not_arrive_is_a_408() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(BodyTooSlow, match=r"0\.01 s"):
        await read_body([], never, BodyBudget(10, 10), max_s=0.01)


async def parts(*chunks: bytes) -> AsyncIterator[dict[str, Any]]:
    """And nothing more: whoever asks on fails."""
    for chunk in chunks:
        yield {"type": "http.request", "body": chunk, "more_body": True}


async def test_a_body_is_whole_with_the_last_byte_that_was_announced() -> None:
    body_budget = BodyBudget(10, 10)
    assert await read_body([(b"content-length", b"4")], parts(b"ab", b"cd").__anext__, body_budget) == b"abcd"
    assert body_budget.num_bytes == 0


async def test_all_bodies_together_are_bounded() -> None:
    body_budget, begun, went_on = BodyBudget(10, 12), asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b"ten bytes.", "more_body": True}
        begun.set()
        await went_on.wait()
        yield {"type": "http.request", "body": b"", "more_body": False}

    slow = asyncio.create_task(read_body([], slowly().__anext__, body_budget))
    await begun.wait()
    more = [{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return more.pop(0)

    with pytest.raises(Overloaded):
        await read_body([], receive, body_budget)
    went_on.set()
    assert await slow == b"ten bytes." and body_budget.num_bytes == 0
    more.append({"type": "http.disconnect"})
    with pytest.raises(BodyTooLarge):
        await read_body([(b"content-length", b"11")], receive, body_budget)


def num_arrivals() -> int:
    return sum(type(one) is RequestContext for one in gc.get_objects())


async def test_refused_and_aborted_requests_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    """A full collection stops the gateway, so there is hardly ever one: what is in a cycle stays."""
    async with serve(tmp_path, workers={"nano-0": fake("nano", step_s=0.02)}) as served:

        async def leave() -> None:
            asked = asyncio.create_task(served.chat(ask("hello", stream=True, max_tokens=100)))
            await until(lambda: served.workers["nano-0"].num_live == 1)
            asked.cancel()
            await until(lambda: served.workers["nano-0"].num_live == 0)

        await served.chat(ask(n=99))
        await leave()
        gc.collect()
        before = num_arrivals()
        gc.disable()
        try:
            for _ in range(5):
                assert (await served.chat(ask(n=99)))[0] == 400
                await leave()
            await asyncio.sleep(0.05)
            assert num_arrivals() <= before
        finally:
            gc.enable()
