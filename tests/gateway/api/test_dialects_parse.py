"""Whatever is in a body of any dialect, it gives a request or a bad request, never anything else."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.chat import parse_chat
from gateway.api.completions import CompletionsBody, parse_completion
from gateway.api.json_schema import check_schema
from gateway.api.messages import parse_count, parse_messages
from gateway.api.messages_body import MessagesBody
from gateway.api.response_store import ResponseStore
from gateway.api.responses import parse_response, read_body
from gateway.api.responses_body import ResponsesBody
from gateway.errors import BadRequest, NotFound
from gateway.ledger.ledger import MemoryLedger
from gateway.request import Message, Request
from tests.gateway.api.test_chat_parse import json_values, places, replaced
from tests.gateway.text.volatile_text import STEADY

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"anyOf": [{"type": "integer", "minimum": 1}, {"$ref": "#/$defs/b"}]},
        "l": {"type": "array", "items": {"enum": [1]}},
    },
    "required": ["a"],
    "$defs": {"b": {"oneOf": [{"type": "string", "format": "date"}, {"type": "null"}]}},
}


def respond(body: bytes) -> Request:
    return parse_response(read_body(body), (), max_tokens_default=5).request


def full(kind: type[msgspec.Struct], **given: Any) -> dict[str, Any]:
    return dict.fromkeys(kind.__struct_fields__) | {"model": "auto"} | given


BODIES: dict[str, tuple[Callable[[bytes], Request], dict[str, Any]]] = {
    "responses": (
        respond,
        full(
            ResponsesBody,
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "y"},
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "z"}]},
                {"type": "message", "role": "assistant", "content": "w"},
            ],
            tools=[{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
            tool_choice={"type": "function", "name": "f"},
            text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            metadata={},
            reasoning={"effort": "low"},
        ),
    ),
    "messages": (
        parse_messages,
        full(
            MessagesBody,
            max_tokens=5,
            system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "y"}]},
            ],
            tools=[{"name": "f", "input_schema": SCHEMA}],
            tool_choice={"type": "any"},
            metadata={"user_id": "u"},
            thinking={"type": "enabled", "budget_tokens": 1024},
        ),
    ),
    "completions": (parse_completion, full(CompletionsBody, prompt="x", stop=["a"], logit_bias=None, n=2)),
}


def check(parse: Callable[[bytes], Request], body: bytes) -> None:
    try:
        request = parse(body)
    except BadRequest as error:
        assert error.message and len(error.message) < 2000
        return
    msgspec.json.encode(request)


@pytest.mark.parametrize("name", BODIES)
def test_the_full_body_is_a_request(name: str) -> None:
    parse, body = BODIES[name]
    assert parse(json.dumps(body).encode()).model == "auto"


@settings(STEADY, max_examples=400)
@given(data=st.data(), name=st.sampled_from(sorted(BODIES)), value=json_values)
def test_any_value_anywhere_gives_a_request_or_a_bad_request(data: st.DataObject, name: str, value: Any) -> None:
    parse, body = BODIES[name]
    place = data.draw(st.sampled_from(places(body)))
    check(parse, json.dumps(replaced(body, place, value)).encode())
    if name == "messages":
        check(parse_count, json.dumps(replaced(body, place, value)).encode())


@settings(STEADY, max_examples=400)
@given(place=st.sampled_from(places(SCHEMA)), value=json_values)
def test_any_schema_is_accepted_or_a_bad_request(place: tuple[Any, ...], value: Any) -> None:
    check_schema(SCHEMA, param="x")
    try:
        check_schema(replaced(SCHEMA, place, value), param="x")
    except BadRequest as error:
        assert (error.param or "").startswith("x")


def test_stored_responses_are_bounded_and_their_tenants_own() -> None:
    ledger = MemoryLedger()
    store = ResponseStore(ledger, lambda: 0.0, max_at_hand=2, max_bytes=1000)
    for number in range(3):
        store.put("a", f"resp_{number}", (Message(role="user", content="x"),), b"{}")
    assert len(store) == 2 and asyncio.run(store.get("a", "resp_2")).conversation()[0].content == "x"
    for tenant, id in (("a", "resp_0"), ("b", "resp_2")):
        with pytest.raises(NotFound):
            asyncio.run(store.get(tenant, id))
    store.put("a", "resp_3", (Message(role="user", content="y" * 2000),), b"{}")
    assert len(store) == 0
    ledger.close()


EPHEMERAL = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(
    ("more", "keep_s"),
    [
        ({}, 0.0),
        ({"cache_control": EPHEMERAL}, 300.0),
        ({"system": [{"type": "text", "text": "s", "cache_control": EPHEMERAL}]}, 300.0),
        ({"system": [{"type": "text", "text": "s", "cache_control": HOUR}], "cache_control": EPHEMERAL}, 3600.0),
        ({"tools": [{"name": "f", "input_schema": SCHEMA, "cache_control": {**HOUR, "scope": "global"}}]}, 3600.0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": EPHEMERAL}]}]}, 300.0),
    ],
)
def test_cache_control_sets_the_retention_of_a_prefix(more: dict[str, Any], keep_s: float) -> None:
    body = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]} | more
    assert parse_messages(msgspec.json.encode(body)).keep_s == keep_s


@pytest.mark.parametrize("wrong", [{"type": "forever"}, {"type": "ephemeral", "ttl": "2h"}, {}])
def test_cache_control_of_another_kind_is_refused(wrong: dict[str, str]) -> None:
    body = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "cache_control": wrong}
    with pytest.raises(BadRequest, match="cache_control"):
        parse_messages(msgspec.json.encode(body))


def test_prompt_cache_retention_sets_the_same_retention() -> None:
    chat = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "prompt_cache_retention": "24h"}
    assert parse_chat(msgspec.json.encode(chat), max_tokens_default=5).keep_s == 86_400.0
    chat["prompt_cache_retention"] = "in_memory"
    assert parse_chat(msgspec.json.encode(chat), max_tokens_default=5).keep_s == 0.0


async def test_stored_responses_of_one_tenant_evict_only_its_own() -> None:
    store = ResponseStore(MemoryLedger(), lambda: 0.0, max_at_hand=100, max_bytes=10_000)
    store.put("b", "kept", (), b"body")
    for number in range(50):
        store.put("a", f"a{number}", (), bytes(1_000))
    assert (await store.get("b", "kept")).body == b"body"
    assert len(store) == 10 and (await store.get("a", "a49")).body == bytes(1_000)
