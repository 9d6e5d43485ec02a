"""What a chat completion's body may say, and that whatever else it says is a clear refusal naming the place."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.wire import Grammar, Sampling
from gateway.api.chat import parse_chat
from gateway.api.chat_body import ChatBody
from gateway.api.chat_render import render_error
from gateway.api.json_schema import check_schema
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.request import Message, Request, Tool, ToolCall
from tests.gateway.text.volatile_text import STEADY

HELLO = [{"role": "user", "content": "hello"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "42"}
TOOL = {"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object"}}}
NULLABLE = sorted(set(ChatBody.__struct_fields__) - {"model", "messages"})


def parse(**fields: Any) -> Request:
    body = {"model": "auto", "messages": HELLO, **fields}
    return parse_chat(json.dumps(body).encode(), max_tokens_default=77)


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    return caught.value


def test_the_least_body_is_greedy_and_has_the_default_length() -> None:
    request = parse()
    assert request == Request(model="auto", messages=(Message(role="user", content="hello"),), sampling=Sampling(max_tokens=77))
    assert request.sampling.temperature == 0.0


def test_every_sampling_field_arrives() -> None:
    request = parse(
        max_completion_tokens=5, temperature=0.5, top_p=0.9, top_k=40, seed=-3, stop=["a", "b"], logprobs=True,
        top_logprobs=3, ignore_eos=True, stream=True, stream_options={"include_usage": True}, presence_penalty=0.5,
        frequency_penalty=-1, logit_bias={"5": -3}, model="nano", n=3, reasoning_effort="low",
    )  # fmt: skip
    assert request.sampling == Sampling(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=40, seed=-3, stop=("a", "b"), top_logprobs=3, ignore_eos=True,
        presence_penalty=0.5, frequency_penalty=-1, logit_bias=((5, -3),),
    )  # fmt: skip
    assert (request.num_choices, request.reasoning_effort) == (3, "low")
    assert request.max_tokens_given and request.stream and request.include_usage


def test_stop_may_be_one_string_and_top_k_minus_one_is_off() -> None:
    sampling = parse(stop="end", top_k=-1, logprobs=True, max_tokens=3).sampling
    assert (sampling.stop, sampling.top_k, sampling.top_logprobs, sampling.max_tokens) == (("end",), 0, 0, 3)


def test_every_optional_field_may_be_null() -> None:
    assert parse(**dict.fromkeys(NULLABLE)) == parse()


def test_messages_of_every_role_are_parsed() -> None:
    request = parse(
        messages=[
            {"role": "system", "content": "be good", "name": "sys"},
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [], "name": None},
            {**CALLING, "refusal": None, "annotations": [], "audio": None, "function_call": None},
            {**RESULT, "content": [{"type": "text", "text": "42"}], "name": "f"},
            {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "refusal": "never"},
        ]
    )
    assert request.messages == (
        Message(role="system", content="be good"),
        Message(role="system", content="a\nb"),
        Message(role="user"),
        Message(role="assistant", tool_calls=(ToolCall(id="call_1", name="f", arguments="{}"),)),
        Message(role="tool", content="42", tool_call_id="call_1"),
        Message(role="assistant", content="x\nno"),
        Message(role="assistant", content="never"),
    )
    assert request.advisory == ("messages.name",)


def test_tools_are_shown_unless_the_client_forbids_calls() -> None:
    tool = Tool(name="f", description="does", parameters={"type": "object"})
    assert parse(tools=[TOOL]).tools == parse(tools=[TOOL], tool_choice="auto").tools == (tool,)
    assert parse(tools=[TOOL], tool_choice="none").tools == ()


def test_advisory_parameter_is_accepted_and_listed() -> None:
    fields = {
        "store": False, "modalities": ["text"], "user": "me",
        "metadata": {"any": ["thing"]}, "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
    }  # fmt: skip
    request = parse(**fields)
    assert set(request.advisory) == set(fields)
    assert request.sampling == parse().sampling


def test_hints_name_the_run() -> None:
    request = parse(
        program_id="p", session_id="s", prompt_cache_key="k", litellm_session_id="l", conversation={"id": "c"},
        previous_response_id="r", metadata={"session_id": "ms", "user_id": "mu", "litellm_session_id": "ml", "other": "no"},
    )  # fmt: skip
    assert dict(request.hints) == {
        "program_id": "p", "session_id": "s", "prompt_cache_key": "k", "litellm_session_id": "l", "conversation": "c",
        "previous_response_id": "r", "metadata.session_id": "ms", "metadata.user_id": "mu", "metadata.litellm_session_id": "ml",
    }  # fmt: skip
    assert parse(conversation="c", metadata={"session_id": 5}).hints == (("conversation", "c"),)


UNSUPPORTED: dict[str, Any] = {
    "store": True, "modalities": ["text", "audio"], "functions": [], "function_call": "auto",
    "audio": {}, "prediction": {}, "verbosity": "low", "web_search_options": {},
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameter_that_changes_the_answer_is_refused_by_name(name: str) -> None:
    error = refused(tools=[TOOL], **{name: UNSUPPORTED[name]})
    assert isinstance(error, UnsupportedParameter) and error.param == name and name in error.message


OTHER = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "not": {}}}}


def test_tool_choice_limits_the_callable_tools() -> None:
    assert parse(tools=[TOOL, OTHER]).calls is None
    assert parse(tools=[TOOL], tool_choice="none").calls is None
    required = parse(tools=[TOOL, OTHER], tool_choice="required").calls
    assert required and required.required and required.parallel
    assert [(tool.name, tool.strict) for tool in required.tools] == [("f", True), ("g", False)]
    for choice in ({"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "f"}):
        named = parse(tools=[TOOL, OTHER], tool_choice=choice)
        assert named.calls and named.calls.required
        assert [tool.name for tool in named.calls.tools] == ["f"] and len(named.tools) == 2
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]},
    }
    some = parse(tools=[TOOL, OTHER], tool_choice=allowed).calls
    assert some and not some.required and [tool.name for tool in some.tools] == ["g"]
    single = parse(tools=[TOOL], parallel_tool_calls=False).calls
    assert single and not single.parallel and not single.required and single.param == "parallel_tool_calls"


def test_a_strict_tool_is_held_to_its_schema() -> None:
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
    rule = parse(tools=[strict]).calls
    assert rule and not rule.required and rule.tools[0].strict and rule.param == "tools"


def test_a_format_is_a_grammar() -> None:
    assert parse(response_format={"type": "text"}).sampling.grammar is None
    assert parse(response_format={"type": "json_object"}).sampling.grammar == Grammar(kind="json", param="response_format")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    grammar = parse(response_format=asked).sampling.grammar
    assert grammar and grammar.kind == "schema" and json.loads(grammar.text) == schema
    pattern = parse(response_format={"type": "regex", "pattern": "a+"}).sampling.grammar
    assert pattern == Grammar(kind="regex", param="response_format", text="a+")


ESCAPED_CLASSES = ['["]', r"[\\]", r'["\\]', r"[\"\\]", r'a["\\]+b', r"[\x22]", r"[\n\t]", r'\["x\]']
"""Of nothing but what JSON escapes; the last is none."""
KEYWORDS: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"not": {}}, "not"),
    ({"type": "object", "properties": {"a": {"if": {}}}}, "if"),
    ({"$ref": "http://elsewhere/x"}, "$ref"),
    ({"type": "string", "format": "colour"}, "format"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "allOf"),
    ({"anyOf": [{"type": "integer"}], "minimum": 3, "type": "integer"}, "minimum"),
    ({"type": "object", "required": ["a"]}, "required"),
    ({"properties": {}}, "properties"),
    ({"type": "integer", "minLength": 3}, "minLength"),
    ({"type": "wrong"}, "type"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "maxLength"),
    ({"type": "string", "pattern": 'a"b'}, "pattern"),
    ({"type": "string", "pattern": r"^C:\\\\[a-z]+$"}, "pattern"),
    ({"type": "string", "pattern": r"a\nb"}, "pattern"),
    *(({"type": "string", "pattern": pattern}, "pattern") for pattern in ESCAPED_CLASSES),
    (json.loads('{"items":' * 120 + "{}" + "}" * 120), "items"),
]


@pytest.mark.parametrize(("schema", "keyword"), KEYWORDS)
def test_a_schema_beyond_grammars_is_refused_by_its_keyword(schema: Any, keyword: str) -> None:
    error = refused(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert isinstance(error, UnsupportedParameter)
    assert keyword in error.message and (error.param or "").startswith("response_format")
    tool = {"type": "function", "function": {"name": "a", "strict": True, "parameters": schema}}
    assert (refused(tools=[tool]).param or "").startswith("tools[0].function.parameters")


@pytest.mark.parametrize("pattern", [r"^[A-Z]{2}-\d+$", r'^[^"\\]*$', r"^\w+\.\w+$", r"\[a\]", r'[\]"\\]', '["x]'])
def test_a_pattern_that_needs_no_escapes_is_taken(pattern: str) -> None:
    check_schema({"type": "string", "pattern": pattern}, param="x")


def test_disjoint_options_may_be_one_of() -> None:
    a = {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]}
    b = {"type": "object", "properties": {"kind": {"enum": ["b", "c"]}}, "required": ["kind"]}
    schema = {"$defs": {"b": b}, "oneOf": [a, {"$ref": "#/$defs/b"}, {"type": "null"}]}
    check_schema(schema, param="x")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "model", "expected `str`"),
    ({"model": ""}, "model", "length >= 1"),
    ({"messages": []}, "messages", "send at least one message"),
    ({"messages": "hi"}, "messages", "expected `array`"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot': use system, developer"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "expected `str | array`"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got `int`"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type",
     "'image_url' are not supported: send text parts"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "is missing"),
    ({"messages": [*HELLO, {"role": "user", "content": "x", "tool_calls": []}]}, "messages[1].tool_calls", "unknown field"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content", "content or tool_calls"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content", "content or tool_calls"),
    ({"messages": [{"role": "assistant", "content": "x", "function_call": {}}]}, "messages[0].function_call", "use content"),
    ({"messages": [*HELLO, RESULT]}, "messages[1].tool_call_id", "must follow the assistant message"),
    ({"messages": [CALLING, RESULT, RESULT]}, "messages[2].tool_call_id", "answers no open call"),
    ({"messages": [CALLING, *HELLO]}, "messages[1]", "'call_1' before it have no result"),
    ({"messages": [*HELLO, CALLING]}, "messages[2]", "have no result"),
    ({"messages": [{**CALLING, "tool_calls": [CALL, CALL]}]}, "messages[0].tool_calls[1].id", "used twice"),
    ({"messages": [{**CALLING, "tool_calls": [{**CALL, "type": "custom"}]}]}, "messages[0].tool_calls[0].type", "use function"),
    ({"messages": [{**CALLING, "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function", "is missing"),
    ({"tools": [{"type": "web_search", "limit": 3}]}, "tools[0].type", "use function"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "used twice"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "matching regex"),
    ({"tool_choice": "maybe"}, "tool_choice", "auto, none, required"),
    ({"tool_choice": "required"}, "tool_choice", "send tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice", "no tool 'h'"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "use function"),
    ({"n": 0}, "n", ">= 1"),
    ({"n": 17}, "n", "<= 16"),
    ({"presence_penalty": 3}, "presence_penalty", "<= 2"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "needs a model"),
    ({"logit_bias": {"five": 1}, "model": "nano"}, "logit_bias", "not a token id"),
    ({"reasoning_effort": "much"}, "reasoning_effort", "must be one of none, minimal"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "use text"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "is missing"),
    ({"response_format": {"type": "regex"}}, "response_format.pattern", "is missing"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "beside response_format"),
    ({"temprature": 1}, "temprature", "did you mean `temperature`?"),
    ({"zzz": 1}, "zzz", "remove it"),
    ({"temperature": "hot"}, "temperature", "got `str`"),
    ({"temperature": 2.1}, "temperature", "<= 2.0"),
    ({"top_p": 0}, "top_p", "> 0.0"),
    ({"max_tokens": 0}, "max_tokens", ">= 1"),
    ({"max_tokens": True}, "max_tokens", "got `bool`"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "send only max_completion_tokens"),
    ({"seed": 2**64}, "seed", ""),
    ({"stop": ["a"] * 5}, "stop", "length <= 4"),
    ({"stop": ""}, "stop", "length >= 1"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "<= 20"),
    ({"top_logprobs": 2}, "top_logprobs", "send logprobs true"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "send stream true"),
    ({"stream": "yes"}, "stream", "got `str`"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), WRONG, ids=[f"{param}-{n}" for n, (_, param, _) in enumerate(WRONG)])
def test_a_wrong_value_is_refused_with_its_place(fields: dict[str, Any], param: str, words: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert words in error.message and param in error.message


BROKEN = [
    (b"", "empty"),
    (b" \n", "empty"),
    (b"{", "not valid JSON"),
    (b'{"model": "a",}', "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b'"text"', "must be a JSON object"),
    (b'{"model": "a", "messages": [{"role": "user", "content": "\\ud800 x"}]}', "surrogate"),
    (b'{"model": "a", "messages": [{"role": "user", "content": "\xff"}]}', "not UTF-8"),
    (b'{"model": "a", "messages": [], "temperature": NaN}', "not valid JSON"),
    (b'{"model": "a", "messages": [], "temperature": 1e999}', "temperature"),
    (b'{"model": "a", "messages": [], "seed": ' + b"9" * 5000 + b"}", "seed"),
    (b'{"model": "a", "messages": [], "metadata": {"a": ' + b"9" * 5000 + b"}}", ""),
    (b'{"model": "a", "messages": [], "metadata": ' + b'{"a":' * 100_000, "nested too deeply"),
    (b'{"model": "a", "messages": [], "tools": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"model": "a", "model": "b", "messages": []}', "`model` occurs twice"),
    (b'{"model": "a", "m\\u006fdel": "b", "messages": [{"role": "user", "content": "x"}]}', "without escapes"),
    (b'{"seed": 1, "model": "a", "messages": [{"role": "user", "content": "x"}], "seed": 1}', "`seed` occurs twice"),
]


@pytest.mark.parametrize(("body", "words"), BROKEN, ids=[f"{words}-{n}" for n, (_, words) in enumerate(BROKEN)])
def test_a_broken_body_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat(body, max_tokens_default=1)
    assert words in caught.value.message


def test_a_name_that_occurs_again_elsewhere_is_not_given_twice() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {}, "seed": {"seed": 1}}}}}
    assert parse(tools=[tool], seed=4, messages=[{"role": "user", "content": 'the "model" and "seed"'}]).sampling.seed == 4


@pytest.mark.parametrize("depth", [101, 400])
def test_a_tool_schema_nested_without_end_is_refused(depth: int) -> None:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": [schema]}
    error = refused(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert error.param == "tools[0].function.parameters" and "flatten it" in error.message


def test_huge_invalid_value_is_not_echoed() -> None:
    error = refused(messages=[{"role": "x" * 100_000, "content": ""}])
    assert len(error.message) < 1000
    assert len(refused(**{"y" * 100_000: 1}).message) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FULL: dict[str, Any] = {
    "model": "auto",
    "messages": [*HELLO, CALLING, RESULT, {"role": "system", "content": [{"type": "text", "text": "t"}]}],
    "tools": [TOOL],
    **dict.fromkeys(NULLABLE),
    "metadata": {"user_id": "u"},
    "stream_options": {"include_usage": True},
}
FULL["tools"] = [TOOL]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def check_only_bad_requests(body: bytes) -> None:
    try:
        request = parse_chat(body, max_tokens_default=1)
    except BadRequest as error:
        shape = json.loads(render_error(error))["error"]
        assert shape["message"] and len(shape["message"]) < 2000
        return
    msgspec.json.encode(request)


@settings(STEADY, max_examples=500)
@given(place=st.sampled_from(places(FULL)), value=json_values)
def test_any_value_anywhere_gives_a_request_or_a_bad_request(place: tuple[Any, ...], value: Any) -> None:
    check_only_bad_requests(json.dumps(replaced(FULL, place, value)).encode())


@settings(STEADY, max_examples=300)
@given(at=st.integers(0, 10_000), cut=st.integers(0, 20), extra=st.binary(max_size=6))
def test_any_damage_to_the_bytes_gives_a_request_or_a_bad_request(at: int, cut: int, extra: bytes) -> None:
    body = json.dumps(FULL).encode()
    at %= len(body)
    check_only_bad_requests(body[:at] + extra + body[at + cut :])


@settings(STEADY, max_examples=200)
@given(body=st.binary(max_size=60))
def test_any_bytes_give_a_bad_request(body: bytes) -> None:
    check_only_bad_requests(body)


def test_schema_over_the_work_bound_is_refused() -> None:
    user = {"role": "user", "content": ""}
    tool = {"type": "function", "function": {"name": "f"}}
    assert refused(messages=[user] * 10_001).param == "messages"
    assert refused(tools=[tool] * 1_001).param == "tools"
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(10_000)}}
    many = {"oneOf": [{"type": "object", "properties": {"k": {"const": n}}, "required": ["k"]} for n in range(65)]}
    for schema, words in ((wide, "at most 131,072"), (many, "64 options at most")):
        error = refused(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        assert words in error.message


@pytest.mark.parametrize(
    ("a", "b", "apart"), [(["x"], ["y"], True), ([1], [1.0], False), ([[1, {"a": 2}]], [[1, {"a": 2}]], False)]
)
def test_discriminating_values_are_compared_as_json(a: list[Any], b: list[Any], apart: bool) -> None:
    def option(values: list[Any]) -> dict[str, Any]:
        return {"type": "object", "properties": {"k": {"enum": values}}, "required": ["k"]}

    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"oneOf": [option(a), option(b)]}}}
    if apart:
        assert parse(response_format=form).sampling.grammar
    else:
        assert "distinguishing `const`" in refused(response_format=form).message
