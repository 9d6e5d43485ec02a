"""Every header and body field that names a run, in every dialect, over HTTP; `GET /v1/headway/runs` says which one was used."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.served import Served, fake, serve, until

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
SAID = [{"role": "user", "content": "hello there"}]
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "nano", "max_tokens": 2, "messages": SAID},
    "/v1/responses": {"model": "nano", "max_output_tokens": 2, "input": "hello there"},
    "/v1/messages": {"model": "nano", "max_tokens": 2, "messages": SAID},
    "/v1/completions": {"model": "nano", "max_tokens": 2, "prompt": "hello there"},
}
HEADERS = [
    ({"x-headway-run-id": "r"}, "r", ["r"]),
    ({"x-headway-run-id": "r", "x-headway-chain-id": "c", "x-headway-parent-chain-id": "p"}, "r", ["r#c"]),
    ({"x-claude-code-session-id": UUID}, UUID, [UUID]),
    (
        {"x-claude-code-session-id": UUID, "x-claude-code-agent-id": "a7", "x-claude-code-parent-agent-id": "a1"},
        UUID,
        [f"{UUID}#a7"],
    ),
    ({"session-id": "s1"}, "s1", ["s1"]),
    ({"session_id": "s2"}, "s2", ["s2"]),
    ({"thread-id": "t1"}, "t1", ["t1"]),
    ({"x-session-id": "s3"}, "s3", ["s3"]),
    ({"x-session-affinity": "s4"}, "s4", ["s4"]),
    ({"x-opencode-session": "ses_7f"}, "ses_7f", ["ses_7f"]),
    ({"X-Dynamo-Session-ID": "d1"}, "d1", ["d1"]),
    ({"X-Dynamo-Session-ID": "d2", "X-Dynamo-Parent-Session-ID": "d1"}, "d1", ["d1#d2"]),
    ({"x-litellm-trace-id": UUID}, UUID, [UUID]),
    ({"Helicone-Session-Id": "h1"}, "h1", ["h1"]),
    ({"Helicone-Session-Id": "h1", "Helicone-Session-Path": "/plan/search"}, "h1", ["h1#plan/search"]),
    ({"x-llm-d-inference-fairness-id": "f1"}, "f1", ["f1"]),
]
FIELDS: list[tuple[str, Any, str]] = [
    ("litellm_session_id", "l1", "l1"),
    ("metadata.litellm_session_id", "l2", "l2"),
    ("metadata.session_id", "m1", "m1"),
    ("metadata.user_id", f"user_0a1b_account__session_{UUID}", UUID),
    ("metadata.user_id", f'{{"device_id":"0a1b","account_uuid":"","session_id":"{UUID}"}}', UUID),
    ("program_id", "p1", "p1"),
    ("session_id", "s1", "s1"),
    ("prompt_cache_key", "k1", "k1"),
    ("conversation", "conv_1", "conv_1"),
    ("conversation", {"id": "conv_2"}, "conv_2"),
]


@asynccontextmanager
async def one_worker(folder: Path, more: str = "") -> AsyncIterator[Served]:
    async with serve(folder, workers={"nano-0": fake("nano")}, more=more) as served:
        yield served


async def post(served: Served, path: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
    async with served.http.post(served.url + path, json=DIALECTS[path] | more, headers=headers or {}) as answer:
        return answer.status, await answer.json()


async def runs(served: Served, key: str = "") -> dict[str, str]:
    """What names each live run of the caller."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with served.http.get(f"{served.url}/v1/headway/runs", headers=headers) as answer:
        return {run["id"]: run["source"] for run in (await answer.json())["runs"]}


async def chains(served: Served, run: str) -> list[str]:
    async with served.http.get(f"{served.url}/v1/headway/runs/{run}") as answer:
        return list((await answer.json())["cache"])


def inside(path: str, value: Any) -> dict[str, Any]:
    outer, _, inner = path.partition(".")
    return {outer: {inner: value} if inner else value}


@pytest.mark.parametrize("path", DIALECTS)
async def test_every_header_names_the_run_in_every_dialect(tmp_path: Path, path: str) -> None:
    async with one_worker(tmp_path) as served:
        for headers, run, expected in HEADERS:
            served.gateway.runs.expire(float("inf"))
            status, body = await post(served, path, headers)
            assert status == 200, (headers, body)
            assert await runs(served) == {run: next(iter(headers)).lower()}, headers
            assert await chains(served, run) == expected


@pytest.mark.parametrize("path", DIALECTS)
async def test_every_body_field_names_the_run_in_every_dialect(tmp_path: Path, path: str) -> None:
    async with one_worker(tmp_path) as served:
        for field, value, run in FIELDS:
            if field == "conversation" and path != "/v1/chat/completions" and isinstance(value, dict):
                continue  # only a chat body spells it so
            served.gateway.runs.expire(float("inf"))
            status, body = await post(served, path, **inside(field, value))
            if field == "conversation" and path == "/v1/responses":  # there it would bring messages with it
                assert status == 400 and "conversation" in str(body)
                continue
            assert status == 200, (field, body)
            assert await runs(served) == {run: field}, field


@pytest.mark.parametrize("path", DIALECTS)
async def test_invalid_run_id_is_ignored_but_an_error_in_headway_headers(tmp_path: Path, path: str) -> None:
    async with one_worker(tmp_path) as served:
        for bad in ("x" * 201, "a b", "-x", "a#b", "ä"):
            served.gateway.runs.expire(float("inf"))
            status, _ = await post(served, path, {"x-session-id": bad}, session_id=bad)
            assert status == 200
            assert list((await runs(served)).values()) == ["new"], bad
            status, body = await post(served, path, {"x-headway-run-id": bad})
            assert status == 400 and "x-headway-run-id" in str(body)


@pytest.mark.parametrize("path", DIALECTS)
async def test_returned_answer_id_names_its_chain(tmp_path: Path, path: str) -> None:
    async with one_worker(tmp_path) as served:
        _, first = await post(served, path, {"x-headway-run-id": "r", "x-headway-chain-id": "sub"})
        status, second = await post(served, path, previous_response_id=first["id"])
        assert status == 200, second
        assert await runs(served) == {"r": "x-headway-run-id"}
        assert await chains(served, "r") == ["r#sub"]
        assert first["id"] != second["id"]
        forged = first["id"][:-1] + ("A" if first["id"][-1] != "A" else "B")
        status, _ = await post(served, path, previous_response_id=forged)
        assert status == (400 if path == "/v1/responses" else 200)
        assert len(await runs(served)) == (1 if path == "/v1/responses" else 2)


async def test_a_trace_names_the_run_only_with_the_messages_that_it_began_with(tmp_path: Path) -> None:
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    rewritten = [*SAID, {"role": "assistant", "content": "as the client likes it"}, {"role": "user", "content": "go on"}]
    others = [{"role": "user", "content": "something else"}, *rewritten[1:]]
    async with one_worker(tmp_path) as served:
        path = "/v1/chat/completions"
        _, first = await post(served, path, trace)
        _, second = await post(served, path, trace, messages=rewritten)
        _, other = await post(served, path, trace, messages=others)
        ids = [body["usage"]["headway"]["run_id"] for body in (first, second, other)]
        assert ids[0] == ids[1] != ids[2]


async def test_a_tenant_sees_and_joins_only_its_own_runs(tmp_path: Path) -> None:
    more = "tenants: {a: {keys: [key-a]}, b: {keys: [key-b]}}"
    async with one_worker(tmp_path, more) as served:
        said = {"x-session-id": "shared"}
        for key in ("key-a", "key-b"):
            _, first = await post(served, "/v1/chat/completions", said | {"authorization": f"Bearer {key}"})
        await post(served, "/v1/chat/completions", {"authorization": "Bearer key-a"}, previous_response_id=first["id"])
        assert await runs(served, "key-b") == {"shared": "x-session-id"}
        assert sorted((await runs(served, "key-a")).values()) == ["new", "x-session-id"]
        assert {run.turns for run in served.gateway.runs.all()} == {1}


async def test_finished_sub_agent_releases_its_pages_and_its_run_continues(tmp_path: Path) -> None:
    child = {"X-Dynamo-Session-ID": "child", "X-Dynamo-Parent-Session-ID": "main"}
    async with one_worker(tmp_path) as served:
        path = "/v1/chat/completions"
        await post(served, path, {"X-Dynamo-Session-ID": "main"})
        await post(served, path, child)
        assert sorted(await chains(served, "main")) == ["main", "main#child"]
        await post(served, path, child | {"X-Dynamo-Session-Final": "true"})
        assert await chains(served, "main") == ["main"]
        await until(lambda: any(one.score == 0 for one in served.workers["nano-0"].retained))
        released = [one.chain for one in served.workers["nano-0"].retained if one.score == 0]
        assert [name.partition(":")[2] for name in released] == ["main#child"]
        await post(served, path, {"X-Dynamo-Session-ID": "main", "X-Dynamo-Session-Final": "true"})
        assert await runs(served) == {}
