"""The official Anthropic client runs nano through a tool loop over messages, whole and streamed."""

from typing import Any

import anthropic
import pytest

from tests.frameworks import lab


@pytest.mark.parametrize("stream", [False, True])
def test_messages(nano: str, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=nano, api_key="none")
    messages: list[Any] = [{"role": "user", "content": lab.QUESTION}]
    asked: dict[str, Any] = {
        "model": "auto",
        "max_tokens": 500,
        "system": [{"type": "text", "text": lab.SYSTEM, "cache_control": {"type": "ephemeral"}}],
        "tools": [
            {"name": one["name"], "description": one["description"], "input_schema": one["parameters"]}
            for one in lab.functions()
        ],
    }
    for _ in range(4):
        if stream:
            with client.messages.stream(messages=messages, **asked) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(messages=messages, **asked)
        if message.stop_reason != "tool_use":
            break
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": lab.result(block.name, block.input)}
            for block in message.content
            if block.type == "tool_use"
        ]
        content = [block.model_dump(exclude_none=True) for block in message.content]
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
    (block,) = message.content
    assert block.type == "text" and block.text == lab.ANSWER
    assert client.messages.count_tokens(model="auto", messages=messages).input_tokens > 10


def test_errors_are_the_clients_own(nano: str) -> None:
    client = anthropic.Anthropic(base_url=nano, api_key="none")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=5, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="auto", max_tokens=5, messages=[])
