"""Responses, Messages and Completions in front of fake workers: what is asked and answered in each dialect's own words."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openai
import pytest

from backends.wire import Sampling
from gateway.ledger.ledger import SqliteLedger
from tests.served import Served, fake, serve

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
CLAUDE_TOOL = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}


def calls_once(prompt: bytes, sampling: Sampling) -> Iterable[str]:
    """A call first; words when its result is there, which makes the prompt longer."""
    return iter(["Let me ", "see. ", *CALL]) if len(prompt) < 4 * 120 else iter(["It is ", "sunny."])


def calling() -> dict[str, Any]:
    return {"nano-0": fake("nano", answer=calls_once)}


async def post(served: Served, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with served.http.post(f"{served.url}{path}", json=body) as answer:
        return answer.status, await answer.json()


async def events(served: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    async with served.http.post(f"{served.url}{path}", json={**body, "stream": True}) as answer:
        assert answer.status == 200, await answer.text()
        text = await answer.text()
    found = []
    for block in text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_a_response_is_continued_by_its_id(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=calling()) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "auto", "tools": [FUNCTION], "instructions": "Be brief."}
        first = await client.responses.create(input="Weather in Paris?", **asked)
        call = first.output[1]
        assert call.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny " * 60}
        second = await client.responses.create(input=[result], previous_response_id=first.id, **asked)
        kept = await client.responses.retrieve(second.id)
        await client.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(second.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(input="x", model="auto", previous_response_id="resp_none")
        (run,) = served.gateway.runs.all()
    assert first.output_text == "Let me see. "
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert second.output_text == kept.output_text == "It is sunny."
    assert second.usage and second.usage.input_tokens > 120
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")
    assert run.turns == 2


async def test_a_response_is_continued_after_a_restart(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    async with serve(tmp_path, ledger=SqliteLedger(ledger)) as served, served.client() as client:
        kept, forgotten = [
            await client.responses.create(model="auto", max_output_tokens=8, input="My name is Ada.") for _ in range(2)
        ]
        unstored = await client.responses.create(model="auto", max_output_tokens=8, input="x", store=False)
        await client.responses.delete(forgotten.id)
    async with serve(tmp_path, ledger=SqliteLedger(ledger)) as served, served.client() as client:
        again = await client.responses.create(
            model="auto", max_output_tokens=8, input="Who am I?", previous_response_id=kept.id
        )
        assert (await client.responses.retrieve(kept.id)).output_text == kept.output_text
        for id in (forgotten.id, unstored.id):
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(id)
    assert kept.usage and again.usage and again.usage.input_tokens > kept.usage.input_tokens


async def test_a_streamed_response_ends_as_the_whole_one(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=calling()) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "auto", "input": "Weather in Paris?", "tools": [FUNCTION]}
        whole = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
    assert final.output_text == whole.output_text
    ours = [(item.type, getattr(item, "arguments", None)) for item in final.output]
    assert ours == [(item.type, getattr(item, "arguments", None)) for item in whole.output]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.function_call_arguments.delta") > 5
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 2


async def test_unsupported_response_parameter_is_refused_by_name(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"zzz": 1}, "zzz"),
    ]
    async with serve(tmp_path) as served:
        for fields, param in wrong:
            status, answer = await post(served, "/v1/responses", **({"model": "auto", "input": "hi"} | fields))
            assert (status, answer["error"]["param"]) == (400, param), answer


HELLO = [{"role": "user", "content": "hello"}]


async def test_a_message_and_the_same_streamed_are_equal(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=calling()) as served:
        asked = {"model": "auto", "max_tokens": 300, "messages": HELLO, "tools": [CLAUDE_TOOL], "system": "Be brief."}
        status, whole = await post(served, "/v1/messages", **asked)
        streamed = await events(served, "/v1/messages", **asked)
        _, counted = await post(served, "/v1/messages/count_tokens", **{k: v for k, v in asked.items() if k != "max_tokens"})
    assert status == 200 and whole["stop_reason"] == "tool_use"
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
    assert whole["content"][1]["input"] == {"city": "Paris"}
    kinds = [event["type"] for event in streamed]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == whole["content"][0]["text"]
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == {"city": "Paris"}
    prompt = whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"]
    assert counted == {"input_tokens": prompt}
    assert streamed[-2]["delta"]["stop_reason"] == "tool_use"


async def test_tool_results_in_messages_close_the_loop(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=calling()) as served:
        asked: dict[str, Any] = {"model": "auto", "max_tokens": 300, "tools": [CLAUDE_TOOL]}
        _, first = await post(served, "/v1/messages", messages=HELLO, **asked)
        block = {"type": "tool_result", "tool_use_id": first["content"][1]["id"], "content": "sunny " * 60}
        turns = [*HELLO, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": [block]}]
        status, second = await post(served, "/v1/messages", messages=turns, **asked)
        (run,) = served.gateway.runs.all()
    assert status == 200 and second["content"] == [{"type": "text", "text": "It is sunny."}]
    assert second["stop_reason"] == "end_turn" and run.turns == 2


async def test_invalid_messages_request_gets_anthropics_error_shape(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]}, "messages"),
        ({"tools": [{"name": "a", "type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"temperature": 1.5}, "temperature"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ]
    async with serve(tmp_path) as served:
        for fields, param in wrong:
            body = {"model": "auto", "max_tokens": 5, "messages": HELLO} | fields
            status, answer = await post(served, "/v1/messages", **body)
            assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
            assert answer["error"]["param"] == param, answer
        status, answer = await post(served, "/v1/messages", model="gpt", max_tokens=5, messages=HELLO)
        assert (status, answer["error"]["type"]) == (404, "not_found_error")
        status, _ = await post(
            served, "/v1/messages", model="auto", max_tokens=5, messages=HELLO, thinking={"type": "disabled"}
        )
        assert status == 200


async def test_completions_prompt_is_used_without_a_template(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, served.client() as client:
        asked: dict[str, Any] = {"model": "large", "prompt": "Once upon a time", "max_tokens": 6}
        whole = await client.completions.create(**asked, n=2, logprobs=1)
        text = "".join([chunk.choices[0].text async for chunk in await client.completions.create(**asked, stream=True)])
        submitted = served.workers["nano-0"].submitted[0]
        link = served.gateway.fleet.clients["nano-0"]
        assert link.text
        assert submitted.prompt == link.text.plain("Once upon a time").ids.tobytes()
        for fields, param in (({"echo": True}, "echo"), ({"prompt": [1, 2]}, "prompt"), ({"prompt": ["a", "b"]}, "prompt")):
            status, answer = await post(served, "/v1/completions", **(asked | fields))
            assert (status, answer["error"]["param"]) == (400, param)
    assert [choice.text for choice in whole.choices] == [text, text] and whole.choices[0].finish_reason == "length"
    assert whole.choices[0].logprobs and whole.choices[0].logprobs.text_offset
    assert whole.choices[0].logprobs.text_offset[0] == 0
    assert whole.usage and whole.usage.completion_tokens == 12
