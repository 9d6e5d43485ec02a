"""What we render is what the official client understands."""

import json
import math
from typing import Any

import pytest

from backends.wire import TokenLogprob
from gateway.api.chat_render import (
    DONE,
    WAITING,
    ChunkRenderer,
    finish_reason,
    render_completion,
    render_error,
    render_error_event,
    usage,
)
from gateway.api.dialect import AnswerChoice
from gateway.errors import BadRequest, NoWorker
from gateway.parsers.events import Answer, CallArguments, CallStart, TextDelta
from gateway.request import ToolCall

chat = pytest.importorskip("openai.types.chat")

USAGE = usage(prompt_tokens=10, cached_tokens=8, completion_tokens=3)
LOGPROBS = (TokenLogprob("é", -0.5, (("é", -0.5), ("x", -math.inf))), TokenLogprob("", -1.0))


def renderer(*, include_usage: bool = False) -> ChunkRenderer:
    return ChunkRenderer(id='chatcmpl-"1', created=5, model="nano", include_usage=include_usage)


def data(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2
    return json.loads(event[6:])  # type: ignore[no-any-return]


def chunk(event: bytes) -> Any:
    return chat.ChatCompletionChunk.model_validate(data(event), strict=True)


def completion(*answers: Answer, logprobs: Any = None) -> Any:
    choices = [AnswerChoice(answer, "stop", "", logprobs) for answer in answers]
    body = render_completion(id="chatcmpl-1", created=5, model="nano", choices=choices, usage=USAGE)
    return chat.ChatCompletion.model_validate(json.loads(body), strict=True)


def test_several_answers_are_numbered() -> None:
    choices = completion(Answer("a", ()), Answer("b", (), "why")).choices
    assert [(choice.index, choice.message.content) for choice in choices] == [(0, "a"), (1, "b")]
    assert choices[1].message.reasoning_content == "why"


def test_an_answer_of_text() -> None:
    answer = completion(Answer("hi", ()))
    assert (answer.id, answer.created, answer.model, answer.object) == ("chatcmpl-1", 5, "nano", "chat.completion")
    assert answer.choices[0].message.content == "hi" and answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls is None and answer.choices[0].logprobs is None
    assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (13, 8)


def test_an_answer_of_calls_has_no_content() -> None:
    answer = completion(Answer("", (ToolCall(id="call_1", name="f", arguments='{"a": 1}'),)))
    message = answer.choices[0].message
    assert message.content is None and answer.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls[0].model_dump() == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a": 1}'},
    }


def test_an_empty_answer_is_an_empty_string() -> None:
    assert completion(Answer("", ())).choices[0].message.content == ""


def test_logprobs_are_finite_and_spelled_in_bytes() -> None:
    tokens = completion(Answer("é", ()), logprobs=LOGPROBS).choices[0].logprobs.content
    assert tokens[0].bytes == [195, 169] and tokens[0].top_logprobs[1].logprob == -9999.0
    assert tokens[1].bytes == [] and tokens[1].top_logprobs == []
    assert chunk(renderer().text_with_logprobs("é", LOGPROBS)).choices[0].logprobs.content == tokens


@pytest.mark.parametrize("text", ["hi", "", 'quote " and \\ and \n', "é🙂\u2028", '"delta":{"content":""'])
def test_text_chunks_hold_any_text(text: str) -> None:
    got = chunk(renderer().event(TextDelta(text)))
    assert got.choices[0].delta.content == text and got.choices[0].finish_reason is None
    assert (got.id, got.created, got.model) == ('chatcmpl-"1', 5, "nano")


def test_a_stream_of_calls_joins_to_the_calls() -> None:
    stream = renderer()
    start = chunk(stream.event(CallStart(1, "call_7", "f"))).choices[0].delta.tool_calls[0]
    assert (start.index, start.id, start.type, start.function.name, start.function.arguments) == (
        1,
        "call_7",
        "function",
        "f",
        "",
    )
    more = data(stream.event(CallArguments(1, '{"a"')))["choices"][0]["delta"]
    assert more == {"tool_calls": [{"index": 1, "function": {"arguments": '{"a"'}}]}


def test_a_stream_opens_with_the_role_and_ends_with_a_reason() -> None:
    stream = renderer()
    assert data(stream.open())["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    last = data(stream.finish("length"))["choices"][0]
    assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert DONE == b"data: [DONE]\n\n" and WAITING.startswith(b":") and WAITING.endswith(b"\n\n")


def test_usage_is_null_until_the_last_chunk_and_only_if_asked_for() -> None:
    asked = renderer(include_usage=True)
    assert data(asked.text("a"))["usage"] is None and data(asked.open())["usage"] is None
    assert "usage" not in data(renderer().text("a"))
    last = data(asked.usage(usage(prompt_tokens=2, cached_tokens=1, completion_tokens=3, headway={"cost_usd": 0.5})))
    assert last["choices"] == [] and last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "headway": {"cost_usd": 0.5},
    }


def test_finish_reasons_are_openais() -> None:
    assert [finish_reason("stop", 0), finish_reason("stop", 2), finish_reason("length", 2)] == ["stop", "tool_calls", "length"]


def test_errors_have_openais_shape() -> None:
    error = BadRequest("temperature: expected `float`", param="temperature")
    assert json.loads(render_error(error)) == {
        "error": {
            "message": "temperature: expected `float`",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_request",
        }
    }
    assert data(render_error_event(NoWorker("none")))["error"]["code"] == "no_worker"
