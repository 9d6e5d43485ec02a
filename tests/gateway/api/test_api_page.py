"""The tables of docs/api.md name every parameter of every endpoint once, and what they say of it is what happens."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.api.chat import parse_chat
from gateway.api.chat_body import ChatBody
from gateway.api.completions import CompletionsBody, parse_completion
from gateway.api.json_schema import KEYWORDS
from gateway.api.messages import parse_messages
from gateway.api.messages_body import MessagesBody
from gateway.api.openapi import OPERATIONS
from gateway.api.responses import parse_response, read_body
from gateway.api.responses_body import ResponsesBody
from gateway.errors import BadRequest
from gateway.request import Request

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
HI = [{"role": "user", "content": "hi"}]
WORDS = ("supported", "advisory", "refused", "extension")
SOME: dict[str, Any] = {
    "metadata": {"a": "b"},
    "stream_options": {},
    "cache_control": {"type": "ephemeral"},
    "prompt_cache_retention": "24h",
}


def respond(body: bytes) -> Request:
    return parse_response(read_body(body), (), max_tokens_default=5).request


ENDPOINTS: dict[str, tuple[type[msgspec.Struct], Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, lambda body: parse_chat(body, max_tokens_default=5), {"messages": HI}),
    "/v1/responses": (ResponsesBody, respond, {"input": "hi"}),
    "/v1/messages": (MessagesBody, parse_messages, {"messages": HI, "max_tokens": 5}),
    "/v1/completions": (CompletionsBody, parse_completion, {"prompt": "hi"}),
}


def rows(endpoint: str) -> dict[str, str]:
    section = PAGE.split(f"## POST {endpoint}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert len(found) == len(dict(found)), "a parameter is there twice"
    return dict(found)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_parameter_has_a_row(endpoint: str) -> None:
    kind = ENDPOINTS[endpoint][0]
    said = rows(endpoint)
    assert set(said) == set(kind.__struct_fields__)
    assert all(word in WORDS or word.startswith("only ") for word in said.values())


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_behaviour_of_each_parameter_equals_the_page(endpoint: str) -> None:
    _, parse, least = ENDPOINTS[endpoint]
    for name, word in rows(endpoint).items():
        if word == "refused":
            with pytest.raises(BadRequest) as caught:
                parse(json.dumps({"model": "auto", **least, name: "x"}).encode())
            assert caught.value.param == name
        elif word == "advisory" and name != "stream_options":
            request = parse(json.dumps({"model": "auto", **least, name: SOME.get(name, "x")}).encode())
            assert name in request.advisory
        elif word.startswith("only "):
            for value in re.findall(r"`([^`]+)`", word):
                value = value if re.fullmatch(r"[a-z_]+", value) and value not in ("true", "false") else json.loads(value)
                parse(json.dumps({"model": "auto", **least, name: value}).encode())


def test_every_endpoint_is_named() -> None:
    named = set(re.findall(r"\b(GET|POST|DELETE) (/[^\s`]*)", PAGE))
    assert named >= {(one.method.upper(), one.path) for one in OPERATIONS}


def test_every_schema_keyword_is_named() -> None:
    section = PAGE.split("## Schemas")[1].split("\n## ")[0]
    assert {f"`{keyword}`" for keyword in KEYWORDS} <= set(re.findall(r"`[^`]+`", section))
