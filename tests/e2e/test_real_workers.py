"""The whole thing with a real engine: `python -m backends` on the small shipped model, started by the gateway."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.served import Served, ask, serve, until


def load(served: Served, worker: str = "pico-0") -> Any:
    return served.gateway.fleet.clients[worker].load


@pytest.mark.timeout(300)
async def test_a_real_worker_through_the_gateway(tmp_path: Path) -> None:
    """One start of a real engine for all of these: it takes seconds."""
    async with serve(tmp_path, local={"pico-0": "pico"}, env=dict(os.environ)) as served:
        await an_answer_streamed_equals_the_whole(served)
        await a_later_turn_finds_its_prefix(served)
        await device_seconds_add_up(served)
        await a_long_prompt_is_refused_with_both_numbers(served)
        await answers_have_the_form_that_was_asked_for(served)
        await leaving_frees_the_pages(served)
        await a_killed_worker_comes_back(served)


async def an_answer_streamed_equals_the_whole(served: Served) -> None:
    async with served.client() as client:
        asked: dict[str, Any] = {"model": "pico", "messages": ask("Say hello to Ada.")["messages"], "max_tokens": 30}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].message.content
    assert whole.choices[0].message.content == "".join(parts)


async def a_later_turn_finds_its_prefix(served: Served) -> None:
    messages = ask("The code of the north gate is 4711. " * 10)["messages"]
    first, second = [(await served.chat(ask(model="pico", messages=messages)))[1] for _ in range(2)]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 17
    assert first["choices"][0]["message"] == second["choices"][0]["message"]


async def device_seconds_add_up(served: Served) -> None:
    before = sum(run.device_s for run in served.gateway.runs.all())
    # A `Load` comes after the `Finished` that it counts.
    await until(lambda: load(served).attributed_s >= before * 0.999)
    began = load(served).attributed_s
    answers = await asyncio.gather(*(served.chat(ask(f"What is {n} plus {n}?", model="pico")) for n in range(12)))
    charged = sum(body["usage"]["headway"]["device_s"] for _, body in answers)
    await until(lambda: load(served).running == 0 and load(served).attributed_s - began >= charged * 0.999)
    assert charged == pytest.approx(load(served).attributed_s - began, rel=1e-3)
    assert sum(run.device_s for run in served.gateway.runs.all()) - before == pytest.approx(charged)
    assert load(served).attributed_s == pytest.approx(load(served).busy_s, rel=1e-3)
    assert not served.gateway.fleet.excess, "a sound worker reports nothing beyond its bounds"


async def a_long_prompt_is_refused_with_both_numbers(served: Served) -> None:
    status, body = await served.chat(ask("word " * 5000, model="pico"))
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "4,096" in body["error"]["message"]


async def answers_have_the_form_that_was_asked_for(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "warm": {"type": "boolean"}},
        "required": ["city", "warm"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    asked = ask("Weather in Rome?", model="pico", max_tokens=100)
    _, body = await served.chat(asked, response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": schema}})
    assert set(json.loads(body["choices"][0]["message"]["content"])) == {"city", "warm"}
    _, body = await served.chat(asked, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"city", "warm"}
    _, body = await served.chat(asked, response_format={"type": "regex", "pattern": "(yes|no)!"})
    assert body["choices"][0]["message"]["content"] in ("yes!", "no!")
    status, body = await served.chat(asked, response_format={"type": "regex", "pattern": "(?=a)b"}, stream=True)
    assert (status, body["error"]["param"]) == (400, "response_format") and "Lookahead" in body["error"]["message"]
    status, body = await served.chat(asked, logit_bias={"99999": 1})
    assert (status, body["error"]["param"]) == (400, "logit_bias")


async def leaving_frees_the_pages(served: Served) -> None:
    body = ask("Count from 1 to 1000.", model="pico", max_tokens=4000, stream=True, temperature=2.0, seed=1)
    answer = await served.http.post(f"{served.url}/v1/chat/completions", json=body)
    await answer.content.readany()
    answer.close()
    await until(lambda: not served.gateway.fleet.clients["pico-0"].streams)
    await until(lambda: load(served).running == 0)
    assert load(served).free_pages + load(served).cached_pages == load(served).num_pages


async def a_killed_worker_comes_back(served: Served) -> None:
    local = served.gateway.fleet.supervisor.workers["pico-0"]
    assert local.process is not None
    os.kill(local.process.pid, signal.SIGKILL)
    await until(lambda: not served.gateway.fleet.clients["pico-0"].healthy)
    status, body = await served.chat(ask(model="pico"))
    assert (status, body["error"]["code"]) == (503, "no_worker")
    await until(lambda: served.gateway.fleet.clients["pico-0"].healthy, 100)
    assert (await served.chat(ask(model="pico")))[0] == 200
