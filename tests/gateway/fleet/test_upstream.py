"""A gateway in front of a real server on loopback that is no worker of ours."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.ledger.rows import RequestRow
from tests.fake_upstream import WORDS, FakeUpstream, chunks, delta, status, stream, whole
from tests.served import Served, ask, fake, serve, until

UPSTREAMS = """
upstreams:
  vendor:
    url: {url}
    model: afar
    served_as: vendor/afar-1
    tier: large
    key: secret
    prices: {{input: 2.0, output: 10.0, cached: 0.5}}
    timeouts: {{connect_s: 1.0, first_s: {first_s}, idle_s: {first_s}}}
    retries: {retries}
    failures: {failures}
    cooldown_s: 0.5
"""


@asynccontextmanager
async def served(
    folder: Path, *, pico: bool = False, retries: int = 2, failures: int = 9, first_s: float = 5.0
) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    async with FakeUpstream().serving() as upstream:
        more = UPSTREAMS.format(url=upstream.url, retries=retries, failures=failures, first_s=first_s)
        async with serve(folder, workers={"pico-0": fake("pico")} if pico else {}, more=more) as one:
            yield one, upstream


def content(body: dict[str, Any]) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text


async def events(one: Served, **more: Any) -> list[dict[str, Any]]:
    async with one.http.post(f"{one.url}/v1/chat/completions", json=ask(stream=True, **more)) as answer:
        lines = [line[6:] for line in (await answer.text()).splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_a_whole_answer_costs_its_tokens(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, upstream):
        code, body = await one.chat(ask("hello", temperature=0.5, stop=["END"]))
        assert (code, content(body)) == (200, "".join(WORDS))
        assert body["usage"]["prompt_tokens"] == 100
        assert body["usage"]["completion_tokens"] == 3
        sent = upstream.bodies[0]
        assert sent["model"] == "vendor/afar-1"
        assert sent["messages"] == [{"role": "user", "content": "hello"}]
        assert (sent["temperature"], sent["stop"], sent["max_tokens"], sent["stream"]) == (0.5, ["END"], 8, True)
        assert upstream.headers[0]["authorization"] == "Bearer secret"
        await until(lambda: any(isinstance(row, RequestRow) for row in one.ledger.rows))
        row = next(row for row in one.ledger.rows if isinstance(row, RequestRow))
        assert row.usd == pytest.approx((100 * 2.0 + 3 * 10.0) / 1e6)
        assert (row.worker, row.model, row.tier, row.device_s) == ("vendor", "afar", "large", 0.0)
        assert row.all_large_usd == row.usd


async def test_a_stream_is_a_stream(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, _):
        said = [e["choices"][0]["delta"].get("content") or "" for e in await events(one) if e["choices"]]
        assert "".join(said) == "".join(WORDS)
        assert len([text for text in said if text]) == len(WORDS)


async def test_a_server_that_does_not_stream_is_understood(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, upstream):
        upstream.replies = [whole({"role": "assistant", "content": "at once"}, "length")]
        _, body = await one.chat()
        assert content(body) == "at once"
        assert body["choices"][0]["finish_reason"] == "length"


async def test_tools_reach_the_upstream_and_calls_return(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = {"index": 0, "id": "x", "function": {"name": "look", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"at": "<tool_call>'}}
    rest = {"index": 0, "function": {"arguments": '"}'}}
    second = {"index": 1, "id": "y", "function": {"name": "look", "arguments": "{}"}}
    calls = [delta(tool_calls=[piece]) for piece in (call, more, rest, second)]
    async with served(tmp_path) as (one, upstream):
        for streams in (False, True):
            upstream.replies = [stream(delta(content="I </think> look"), *calls, delta("tool_calls"))]
            if streams:
                said = await events(one, tools=[tool])
                deltas = [d for e in said if e["choices"] for d in e["choices"][0]["delta"].get("tool_calls") or ()]
                named = [d["function"]["name"] for d in deltas if d["function"].get("name")]
                arguments = "".join(d["function"].get("arguments", "") for d in deltas)
                assert (named, arguments) == (["look", "look"], '{"at": "<tool_call>"}{}')
                continue
            _, body = await one.chat(ask(tools=[tool], tool_choice="required", parallel_tool_calls=False))
            found = [c["function"] for c in body["choices"][0]["message"]["tool_calls"]]
            assert found == [{"name": "look", "arguments": '{"at": "<tool_call>"}'}, {"name": "look", "arguments": "{}"}]
            assert content(body) == "I </think> look"
            assert body["choices"][0]["finish_reason"] == "tool_calls"
            assert upstream.bodies[-1]["tools"][0]["function"]["name"] == "look"
            assert upstream.bodies[-1]["tool_choice"] == "required"
            assert upstream.bodies[-1]["parallel_tool_calls"] is False


async def test_tool_results_and_a_schema_reach_the_upstream(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "found"},
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}}}
    async with served(tmp_path) as (one, upstream):
        code, _ = await one.chat({"model": "auto", "max_tokens": 8, "messages": messages, "response_format": schema})
        assert code == 200
        sent = upstream.bodies[0]
        assert sent["messages"][1]["tool_calls"] == messages[1]["tool_calls"]
        assert sent["messages"][2] == messages[2]
        assert sent["response_format"]["type"] == "json_schema"
        assert sent["response_format"]["json_schema"]["schema"]["type"] == "object"


async def test_parameter_that_an_upstream_lacks_is_a_400(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, upstream):
        code, body = await one.chat(ask(logprobs=True))
        assert (code, body["error"]["code"], body["error"]["param"]) == (400, "unsupported_parameter", "logprobs")
        assert upstream.bodies == []


@pytest.mark.parametrize(
    "failing", [status(503), status(429, headers={"retry-after": "0"}), stream(cut=True), stream("no json")]
)
async def test_a_failure_before_the_first_byte_is_tried_again(tmp_path: Path, failing: Any) -> None:
    async with served(tmp_path) as (one, upstream):
        upstream.replies = [failing, failing]
        code, body = await one.chat()
        assert (code, content(body), len(upstream.bodies)) == (200, "".join(WORDS), 3)


async def test_upstream_that_keeps_failing_is_a_503_and_then_skipped(tmp_path: Path) -> None:
    async with served(tmp_path, retries=1, failures=2) as (one, upstream):
        upstream.usual = status(500)
        code, body = await one.chat()
        assert (code, body["error"]["code"], len(upstream.bodies)) == (503, "no_worker", 2)
        code, _ = await one.chat()
        assert (code, len(upstream.bodies)) == (503, 2)
        async with one.http.get(f"{one.url}/v1/headway/workers") as answer:
            health = (await answer.json())["workers"][-1]
        assert (health["name"], health["up"], health["breaker"]) == ("vendor", False, "open")
        assert "status 500" in health["problem"]
        exported = one.gateway.metrics.render().decode()
        labels = 'model="afar",upstream="vendor"'
        for line in (
            f"headway_upstream_up{{{labels}}} 0.0",
            f"headway_upstream_running{{{labels}}} 0.0",
            f"headway_upstream_failures_total{{{labels}}} 2.0",
            'headway_upstream_circuit{model="afar",state="open",upstream="vendor"} 1.0',
            'headway_upstream_circuit{model="afar",state="closed",upstream="vendor"} 0.0',
        ):
            assert line in exported
        upstream.usual = stream(*chunks(*WORDS))
        await until(lambda: one.gateway.fleet.upstreams["vendor"].healthy)
        code, _ = await one.chat()
        assert (code, one.gateway.fleet.upstreams["vendor"].breaker.state) == (200, "closed")


async def test_worker_takes_over_when_an_upstream_fails(tmp_path: Path) -> None:
    async with served(tmp_path, pico=True, retries=0) as (one, upstream):
        upstream.usual = status(500)
        code, body = await one.chat()
        assert (code, body["model"], len(upstream.bodies)) == (200, "pico", 1)


async def test_a_wrong_key_is_not_tried_again(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, upstream):
        upstream.usual = status(401)
        code, _ = await one.chat()
        assert (code, len(upstream.bodies)) == (503, 1)


async def test_upstreams_bad_request_reaches_the_caller(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, upstream):
        upstream.replies = [status(400, "bad tool name"), status(400, "maximum context length is 8 tokens")]
        code, body = await one.chat()
        assert (code, body["error"]["code"]) == (400, "invalid_request")
        assert "bad tool name" in body["error"]["message"]
        code, body = await one.chat()
        assert (code, body["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("end", [{"cut": True}, {}])
async def test_a_stream_that_is_cut_ends_with_an_error(tmp_path: Path, end: dict[str, bool]) -> None:
    async with served(tmp_path) as (one, upstream):
        broken = stream(*chunks("Hel", finish=None, usage=None), **end)
        upstream.replies = [broken, broken]
        said = await events(one)
        assert said[-1]["error"]["code"] == "worker_lost"
        code, body = await one.chat()
        assert (code, body["error"]["code"], len(upstream.bodies)) == (502, "worker_lost", 2)


async def test_slow_upstream_times_out(tmp_path: Path) -> None:
    async with served(tmp_path, retries=0, first_s=0.05) as (one, upstream):
        upstream.usual = stream(*chunks("late"), pause_s=5.0)
        upstream_timeouts = one.gateway.fleet.upstreams["vendor"].policy.timeouts
        assert upstream_timeouts.connect_s + upstream_timeouts.first_s < 5.0
        code, _ = await one.chat()
        assert code == 503


async def test_client_disconnect_aborts_the_upstream_request(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, upstream):
        upstream.usual = stream(*chunks(*(" w" for _ in range(200))), pause_s=0.05)
        with pytest.raises(TimeoutError):
            await one.http.post(f"{one.url}/v1/chat/completions", json=ask(), timeout=aiohttp.ClientTimeout(total=0.5))
        await until(lambda: upstream.num_left == 1)
        await until(lambda: any(isinstance(row, RequestRow) for row in one.ledger.rows))
        row = next(row for row in one.ledger.rows if isinstance(row, RequestRow))
        assert (row.outcome, row.usd > 0) == ("aborted", True)


async def test_reported_cached_tokens_are_expected_of_the_next_turn(tmp_path: Path) -> None:
    headers = {"x-headway-run-id": "r1", "x-headway-chain-id": "c1"}
    usage = {"prompt_tokens": 100, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 80}}
    async with served(tmp_path) as (one, upstream):
        upstream.usual = stream(*chunks(*WORDS, usage=usage))
        for _ in range(2):
            async with one.http.post(f"{one.url}/v1/chat/completions", json=ask("x" * 800), headers=headers) as answer:
                assert answer.status == 200
        async with one.http.post(f"{one.url}/v1/headway/explain", json=ask("x" * 800), headers=headers) as answer:
            option = (await answer.json())["decision"]["chosen"]
        assert (option["worker"], option["cached_tokens"]) == ("vendor", 80)
        uncached = option["prompt_tokens"] - 80
        assert uncached > 0
        assert option["usd"] == pytest.approx((uncached * 2.0 + 80 * 0.5 + 3.0 * 10) / 1e6, rel=0.9)


async def test_models_and_readyz_include_upstreams(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, _):
        async with one.http.get(f"{one.url}/v1/models") as answer:
            assert "afar" in [model["id"] for model in (await answer.json())["data"]]
        async with one.http.get(f"{one.url}/readyz") as answer:
            assert answer.status == 200
        async with one.http.post(f"{one.url}/v1/chat/completions", json=ask(model="afar")) as answer:
            assert (answer.status, answer.headers["x-headway-reason"]) == (200, "asked_by_name")
