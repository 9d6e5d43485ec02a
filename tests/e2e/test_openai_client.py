"""The official client against the whole gateway, answers from fake workers on the real link."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openai
import pytest

from backends.wire import Sampling
from tests.fake_worker import expected_text
from tests.served import Served, fake, serve, until

HI: list[Any] = [{"role": "user", "content": "hello"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


def calls_a_tool(prompt: bytes, sampling: Sampling) -> Iterable[str]:
    return iter(["Let me ", "see. ", *CALL])


async def test_an_answer_and_the_same_streamed_are_equal(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, served.client() as client:
        whole = await client.chat.completions.create(model="auto", messages=HI, max_tokens=20)
        text, usage = "", None
        stream = await client.chat.completions.create(
            model="auto", messages=HI, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
            usage = chunk.usage or usage
        submitted = served.workers["nano-0"].submitted
        expected = expected_text(submitted[0].prompt, 20)
    assert whole.choices[0].message.content == text == expected
    assert whole.choices[0].finish_reason == "length"
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 20
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.model_extra and usage.model_extra["headway"]["worker"] == "nano-0"


async def test_the_sync_client_works_too(tmp_path: Path) -> None:
    def talk(served: Served) -> tuple[str | None, list[str], list[str]]:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="small", messages=HI, max_tokens=5)
            with client.chat.completions.create(model="small", messages=HI, max_tokens=5, stream=True) as stream:
                parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            return whole.choices[0].message.content, parts, [model.id for model in client.models.list()]

    async with serve(tmp_path) as served:
        whole, parts, models = await asyncio.to_thread(talk, served)
    assert whole == "".join(parts)
    assert "auto" in models


async def test_tool_loop_is_recognised_without_headers_streamed_or_not(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano", answer=calls_a_tool)}
    async with serve(tmp_path, workers=workers) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "auto", "messages": HI, "tools": TOOLS, "max_tokens": 500}
        raw = await client.chat.completions.with_raw_response.create(**asked)
        first = raw.parse()
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert message.content == "Let me see. "
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')

        streamed: dict[str, str] = {"id": "", "name": "", "arguments": "", "finish": ""}
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            choice = chunk.choices[0]
            streamed["finish"] += choice.finish_reason or ""
            for delta in choice.delta.tool_calls or []:
                assert delta.function
                streamed["id"] += delta.id or ""
                streamed["name"] += delta.function.name or ""
                streamed["arguments"] += delta.function.arguments or ""
        assert streamed["finish"] == "tool_calls"
        assert (streamed["name"], streamed["arguments"]) == ("get_weather", '{"city": "Paris"}')
        assert streamed["id"].startswith("call_")

        followed = [*HI, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        again = await client.chat.completions.with_raw_response.create(**(asked | {"messages": followed}))
        assert again.headers["x-headway-run-id"] == raw.headers["x-headway-run-id"]
        assert again.headers["x-headway-reason"] == "locked_tool_loop"


async def test_the_client_raises_its_own_errors(tmp_path: Path) -> None:
    keyed = "tenants: {a: {keys: [secret]}}"
    async with serve(tmp_path, more=keyed) as served:
        async with served.client("wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model="auto", messages=HI)
        async with served.client("secret") as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="none", messages=HI)
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model="auto", messages=HI, verbosity="low")
            assert caught.value.param == "verbosity"


async def test_later_turns_of_a_chain_find_their_prefix_in_cache(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, served.client() as client:
        messages = list(HI)
        cached = []
        for turn in range(4):
            answer = await client.chat.completions.create(model="auto", messages=messages, max_tokens=30)
            assert answer.usage and answer.usage.prompt_tokens_details
            cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
            said = answer.choices[0].message.content
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"and {turn}?"}]
        assert cached[0] == 0
        assert cached == sorted(cached)
        assert cached[-1] > 32
        assert len(served.gateway.runs) == 1


async def test_device_seconds_of_all_requests_sum_to_the_workers_busy_time(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, served.client() as client:

        async def one(number: int) -> float:
            answer = await client.chat.completions.create(
                model=("pico", "nano")[number % 2],
                messages=[{"role": "user", "content": f"{number} " * (number + 1)}],
                max_tokens=1 + number % 7,
            )
            assert answer.usage and answer.usage.model_extra
            return float(answer.usage.model_extra["headway"]["device_s"])

        charged = sum(await asyncio.gather(*map(one, range(40))))
        busy = sum(worker.busy_s for worker in served.workers.values())
        runs = sum(run.device_s for run in served.gateway.runs.all())
    assert charged == pytest.approx(busy, rel=1e-9)
    assert runs == pytest.approx(busy, rel=1e-9)


async def test_logprobs_come_in_both_modes(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "auto", "messages": HI, "max_tokens": 3, "logprobs": True, "top_logprobs": 1}
        whole = await client.chat.completions.create(**asked)
        assert whole.choices[0].logprobs and whole.choices[0].logprobs.content
        tokens = [token.token for token in whole.choices[0].logprobs.content]
        assert "".join(tokens) == whole.choices[0].message.content
        streamed: list[str] = []
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            logprobs = chunk.choices[0].logprobs
            streamed += [token.token for token in (logprobs.content if logprobs else None) or []]
        assert streamed == tokens


def test_fake_words_depend_on_every_token() -> None:
    assert expected_text(bytes([1, 0, 0, 0]), 3) != expected_text(bytes([2, 0, 0, 0]), 3)


async def test_choices_are_several_answers_of_one_request(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "large", "messages": HI, "max_tokens": 6, "n": 3}
        whole = await client.chat.completions.create(**asked, seed=7)
        texts = ["", "", ""]
        usage = None
        async for chunk in await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
            usage = chunk.usage or usage
        seeds = {submit.sampling.seed for submit in served.workers["nano-0"].submitted[:3]}
        await until(lambda: not served.gateway.runs.all()[0].num_open)
        (run,) = served.gateway.runs.all()[:1]
    assert [choice.message.content for choice in whole.choices] == texts and len(set(texts)) == 1
    assert whole.usage and usage and whole.usage.completion_tokens == usage.completion_tokens == 18
    assert seeds == {7, 8, 9}
    assert run.turns == 1


async def test_a_call_streams_in_pieces_that_join_to_the_whole_one(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano", answer=calls_a_tool)}
    async with serve(tmp_path, workers=workers) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "auto", "messages": HI, "tools": TOOLS, "max_tokens": 500}
        whole = (await client.chat.completions.create(**asked)).choices[0].message.tool_calls
        deltas = [
            call.function.arguments
            async for chunk in await client.chat.completions.create(**asked, stream=True)
            for call in chunk.choices[0].delta.tool_calls or []
            if call.function and call.function.arguments
        ]
    assert whole and whole[0].type == "function"
    assert "".join(deltas) == whole[0].function.arguments and len(deltas) > 5


async def test_forced_calls_and_formats_reach_the_worker_as_grammars(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano", answer=calls_a_tool)}
    async with serve(tmp_path, workers=workers) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "auto", "messages": HI, "tools": TOOLS, "max_tokens": 500}
        await client.chat.completions.create(**asked, tool_choice="required")
        await client.chat.completions.create(**asked, response_format={"type": "json_object"})
        await client.chat.completions.create(**asked)
        grammars = [submit.sampling.grammar for submit in served.workers["nano-0"].submitted]
    assert grammars[0] and (grammars[0].kind, grammars[0].required, grammars[0].param) == ("calls", True, "tool_choice")
    assert grammars[0].calls[0].begin == '<tool_call>{"name": "get_weather", "arguments": '
    assert grammars[1] and grammars[1].text and grammars[1].calls
    assert grammars[2] is None


async def test_a_worker_without_grammars_is_never_asked_for_one(tmp_path: Path) -> None:
    workers = {"nano-0": fake("nano", grammars=False)}
    async with serve(tmp_path, workers=workers) as served, served.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="auto", messages=HI, response_format={"type": "json_object"})
    assert caught.value.param == "response_format"
