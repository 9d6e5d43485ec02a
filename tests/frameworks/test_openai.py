"""The official OpenAI client runs a tool loop over chat completions and over responses, whole and streamed."""

import json
from typing import Any

import openai
import pytest

TOOL = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
QUESTION = "What is 19 + 23? Use add."


def added(arguments: str) -> str:
    given = json.loads(arguments)
    return str(given["a"] + given["b"])


@pytest.mark.parametrize("stream", [False, True])
def test_chat(url: str, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    tools: Any = [{"type": "function", "function": {"name": "add", "parameters": TOOL}}]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(3):
        if stream:
            with client.chat.completions.stream(model="auto", messages=messages, tools=tools) as events:
                message: Any = events.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.create(model="auto", messages=messages, tools=tools).choices[0].message
        if not message.tool_calls:
            break
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed", "refusal"}))
        for call in message.tool_calls:
            call_id, arguments = call.id, call.function.arguments
            messages.append({"role": "tool", "tool_call_id": call_id, "content": added(arguments)})
    assert message.content == "The sum is 42."


@pytest.mark.parametrize("stream", [False, True])
def test_responses(url: str, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    asked: dict[str, Any] = {
        "model": "auto",
        "tools": [{"type": "function", "name": "add", "parameters": TOOL, "strict": False}],
    }
    items: Any = QUESTION
    previous = None
    for _ in range(3):
        if stream:
            with client.responses.stream(input=items, previous_response_id=previous, **asked) as events:
                response: Any = events.get_final_response()
        else:
            response = client.responses.create(input=items, previous_response_id=previous, **asked)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            break
        previous = response.id
        items = [{"type": "function_call_output", "call_id": one.call_id, "output": added(one.arguments)} for one in calls]
    assert response.output_text == "The sum is 42."
