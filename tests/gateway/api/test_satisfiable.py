"""A schema that no finite value satisfies is a 400 that says so, in every dialect and wherever a schema is held to."""

from pathlib import Path
from typing import Any

import pytest

from gateway.api.json_schema import check_schema
from gateway.errors import UnsatisfiableSchema
from tests.served import serve


def record(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False, **more}


NODE = {"$ref": "#/$defs/node"}
A, B = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}
ENDLESS: list[dict[str, Any]] = [
    record({"next": {"$ref": "#"}}, "next"),
    {"$ref": "#"},
    {"$defs": {"node": NODE}, **NODE},
    {"$defs": {"a": record({"b": B}, "b"), "b": record({"a": A}, "a")}, **A},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2},
    {"anyOf": [record({"x": {"$ref": "#"}}, "x"), {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
    {"oneOf": [record({"x": {"$ref": "#"}}, "x"), {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]},
    {"allOf": [record({"x": {"$ref": "#"}}, "x")]},
    {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#"}},
    record({"x": {"type": "integer", "minimum": 3, "maximum": 2}}, "x"),
    record({"x": {"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 3}}, "x"),
    {"type": "number", "minimum": 2, "exclusiveMaximum": 2},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2},
    {"type": "object", "minProperties": 2, "maxProperties": 1},
    {"type": "string", "const": 5},
    {"type": "integer", "enum": ["a", 1.5, True]},
]
FINITE: list[dict[str, Any]] = [
    record({"next": {"$ref": "#"}}),
    record({"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "next"),
    record({"next": {"type": "array", "items": {"$ref": "#"}}}, "next"),
    {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    {"$defs": {"a": record({"b": B}, "b"), "b": record({"a": A})}, **A},
    {"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 1},
    {"type": "object", "additionalProperties": {"$ref": "#"}},
    {"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 4},
    {"type": "number", "exclusiveMinimum": 2, "exclusiveMaximum": 3},
    {"type": "number", "minimum": 2, "maximum": 2},
    {"type": "integer", "enum": ["a", 1.0]},
    {"type": "boolean", "const": False},
    {},
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_schema_without_a_finite_value_is_refused_and_says_so(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsatisfiableSchema, match="no finite value satisfies") as caught:
        check_schema(schema, param="response_format")
    assert (caught.value.status, caught.value.param) == (400, "response_format")


@pytest.mark.parametrize("schema", FINITE)
def test_schema_with_a_finite_value_is_taken(schema: dict[str, Any]) -> None:
    assert check_schema(schema, param="response_format") > 0


LOOP = record({"next": {"$ref": "#"}}, "next")
HELLO = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
FUNCTION = {"type": "function", "name": "f", "parameters": LOOP}
CLAUDE_TOOL = {"name": "f", "input_schema": LOOP}


def chat_tool(**more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": LOOP, **more}}]


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": LOOP}}}),
    ("chat/completions", {**HELLO, "tools": chat_tool(strict=True)}),
    ("chat/completions", {**HELLO, "tools": chat_tool(), "tool_choice": "required"}),
    ("chat/completions", {**HELLO, "tools": chat_tool(), "tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ("responses", {"input": "hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": LOOP}}}),
    ("responses", {"input": "hi", "tools": [{**FUNCTION, "strict": True}]}),
    ("responses", {"input": "hi", "tools": [{**FUNCTION, "strict": False}], "tool_choice": "required"}),
    ("messages", {**HELLO, "output_config": {"format": {"type": "json_schema", "schema": LOOP}}}),
    ("messages", {**HELLO, "tools": [{**CLAUDE_TOOL, "strict": True}]}),
    ("messages", {**HELLO, "tools": [CLAUDE_TOOL], "tool_choice": {"type": "any"}}),
    ("messages", {**HELLO, "tools": [CLAUDE_TOOL], "tool_choice": {"type": "tool", "name": "f"}}),
]


async def test_every_dialect_refuses_a_schema_without_a_finite_value(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        for path, body in REQUESTS:
            for stream in (False, True):
                sent = {"model": "auto", "stream": stream} | body
                async with served.http.post(f"{served.url}/v1/{path}", json=sent) as answer:
                    error = (await answer.json())["error"]
                    assert answer.status == 400 and error["type"] == "invalid_request_error", (path, body)
                    assert "no finite value satisfies" in error["message"]
        free = {**HELLO, "tools": chat_tool()}
        assert (await served.chat(free))[0] == 200
        assert not [submit for worker in served.workers.values() for submit in worker.submitted if submit.sampling.grammar]


def test_long_cycles_and_wide_objects_are_checked_in_linear_steps() -> None:
    """A chain in which each definition needs the one before it is settled from either end."""
    for names in (range(2000), range(1999, -1, -1)):
        chain: dict[str, Any] = {f"n{n}": {"$ref": f"#/$defs/n{n - 1}"} if n else {"type": "null"} for n in names}
        assert check_schema({"$defs": chain, "$ref": "#/$defs/n1999"}, param="p")
    parts = {f"n{n}": {"$ref": "#"} for n in range(900)}
    with pytest.raises(UnsatisfiableSchema):
        check_schema(record(parts, *parts), param="p")
