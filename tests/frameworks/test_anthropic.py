"""The official Anthropic client runs a tool loop over messages, whole and streamed."""

from typing import Any

import anthropic
import pytest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}


@pytest.mark.parametrize("stream", [False, True])
def test_messages(url: str, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none")
    messages: list[Any] = [{"role": "user", "content": "What is 19 + 23? Use add."}]
    asked: dict[str, Any] = {
        "model": "auto",
        "max_tokens": 500,
        "system": [{"type": "text", "text": "You add.", "cache_control": {"type": "ephemeral"}}],
        "tools": [{"name": "add", "description": "Adds", "input_schema": SCHEMA}],
    }
    for _ in range(3):
        if stream:
            with client.messages.stream(messages=messages, **asked) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(messages=messages, **asked)
        if message.stop_reason != "tool_use":
            break
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": str(block.input["a"] + block.input["b"])}
            for block in message.content
            if block.type == "tool_use"
        ]
        content = [block.model_dump(exclude_none=True) for block in message.content]
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
    (block,) = message.content
    assert block.type == "text" and block.text == "The sum is 42."
    assert client.messages.count_tokens(model="auto", messages=messages).input_tokens > 10


def test_errors_are_the_clients_own(url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=5, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="auto", max_tokens=5, messages=[])
