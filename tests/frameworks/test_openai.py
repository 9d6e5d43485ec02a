"""The official OpenAI client runs nano through a tool loop over chat completions and over responses, whole and streamed."""

import json
from typing import Any

import openai
import pytest

from tests.frameworks import lab


@pytest.mark.parametrize("stream", [False, True])
def test_chat(nano: str, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{nano}/v1", api_key="none")
    tools: Any = [{"type": "function", "function": one} for one in lab.functions()]
    messages: list[Any] = [{"role": "system", "content": lab.SYSTEM}, {"role": "user", "content": lab.QUESTION}]
    for _ in range(4):
        if stream:
            with client.chat.completions.stream(model="auto", messages=messages, tools=tools) as events:
                message: Any = events.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.create(model="auto", messages=messages, tools=tools).choices[0].message
        if not message.tool_calls:
            break
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed", "refusal"}))
        for call in message.tool_calls:
            result = lab.result(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert message.content == lab.ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_responses(nano: str, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{nano}/v1", api_key="none")
    asked: dict[str, Any] = {
        "model": "auto",
        "instructions": lab.SYSTEM,
        "tools": [{"type": "function", "strict": False, **one} for one in lab.functions()],
    }
    items: Any = lab.QUESTION
    previous = None
    for _ in range(4):
        if stream:
            with client.responses.stream(input=items, previous_response_id=previous, **asked) as events:
                response: Any = events.get_final_response()
        else:
            response = client.responses.create(input=items, previous_response_id=previous, **asked)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            break
        previous = response.id
        items = [
            {"type": "function_call_output", "call_id": one.call_id, "output": lab.result(one.name, json.loads(one.arguments))}
            for one in calls
        ]
    assert response.output_text == lab.ANSWER
