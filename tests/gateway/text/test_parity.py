"""Our prompts have the ids that transformers' `apply_chat_template` gives, for whatever conversation."""

import json
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from gateway.errors import BadRequest
from gateway.request import Message, Tool, ToolCall
from gateway.text.model_text import ModelText
from tests.gateway.text import conversations as some
from tests.gateway.text.small_models import BUILDERS, files_of
from tests.gateway.text.volatile_text import STEADY

NANO = Path(__file__).parents[3] / "backends" / "zoo" / "nano"

Theirs = Callable[[Sequence[Message], Sequence[Tool]], list[int]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def write(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        for file, data in files_of(name).items():
            (path / file).write_bytes(data)
        return path

    return write


@cache
def transformers_on(path: Path) -> Theirs:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import, not of ours
        transformers = pytest.importorskip("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def ids(messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        encoded = tokenizer.apply_chat_template(
            [plain_message(message) for message in messages],
            tools=[plain_tool(tool) for tool in tools] or None,
            add_generation_prompt=True,
        )
        return list(encoded["input_ids"])

    return ids


def plain_message(message: Message) -> dict[str, Any]:
    """As a user of transformers writes it: arguments as objects, where they are some."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": parsed(call.arguments)}}
            for call in message.tool_calls
        ]
    return plain


def parsed(arguments: str) -> object:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def plain_tool(tool: Tool) -> dict[str, Any]:
    given = {"name": tool.name, "description": tool.description or None, "parameters": tool.parameters}
    return {"type": "function", "function": {key: value for key, value in given.items() if value is not None}}


def check(path: Path, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> None:
    theirs = transformers_on(path)
    try:
        ours = list(text_of(path).prompt(messages, tools, now=datetime.now()).ids)
    except BadRequest:
        with pytest.raises(Exception, match=r".*"):
            theirs(messages, tools)
        return
    assert ours == theirs(messages, tools)


@cache
def text_of(path: Path) -> ModelText:
    return ModelText.from_directory(path)


@pytest.mark.parametrize("name", BUILDERS)
@settings(STEADY, max_examples=40)
@given(messages=some.conversations(), tools=some.tools)
def test_ids_equal_those_of_transformers(
    name: str, directory: Callable[[str], Path], messages: tuple[Message, ...], tools: tuple[Tool, ...]
) -> None:
    check(directory(name), messages, tools)


@pytest.mark.skipif(not (NANO / "tokenizer.json").is_file(), reason="backends/zoo/nano is not there: train it with `make zoo`")
@settings(STEADY, max_examples=60)
@given(messages=some.conversations(), tools=some.tools)
def test_the_shipped_models_ids_equal_those_of_transformers(messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> None:
    check(NANO, messages, tools)


def test_arguments_given_as_text_are_shown_as_an_object(directory: Callable[[str], Path]) -> None:
    call = ToolCall(id="call_1", name="f", arguments='{"b":"<ü&>",\n"a":[1,2.50]}')
    messages = (
        Message(role="user", content="go"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="ok", tool_call_id="call_1"),
    )
    text = text_of(directory("chatml")).render(messages, (), now=datetime(2026, 1, 1))
    assert '{"name": "f", "arguments": {"b": "<ü&>", "a": [1, 2.5]}}' in text
    for name in BUILDERS:
        check(directory(name), messages, ())
