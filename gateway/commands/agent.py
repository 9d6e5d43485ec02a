"""Agent of the demonstration: three runs with tools and questions, each with a known answer.

It is a plain client: the official `openai` package and the gateway's address.
"""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai

_OWNERS = {"lamp": "Greta", "drum": "Hugo", "mirror": "Nadia"}
_CITIES = {"Greta": "Oslo", "Hugo": "Lima", "Nadia": "Rome"}
_WEATHER = {"Oslo": "snow", "Lima": "fog", "Rome": "sun"}
_PRICES = {"lamp": 34, "drum": 78, "mirror": 51}
_WORLD: dict[str, tuple[str, dict[str, Any]]] = {
    "get_owner": ("item", _OWNERS),
    "get_city": ("person", _CITIES),
    "get_weather": ("city", _WEATHER),
    "get_price": ("item", _PRICES),
}
"""By tool: its one argument, and its data."""

MAX_CALLS = 4


@dataclass(slots=True)
class Task:
    """A question and its one right answer. `tools` names the available tools."""

    question: str
    answer: str
    tools: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """One agent run: a system prompt and tasks that share a growing history."""

    name: str
    system: str
    tasks: tuple[Task, ...]
    id: str = field(default_factory=lambda: f"demo-{uuid.uuid4().hex[:12]}")


@dataclass(slots=True)
class Turn:
    """One request of a run from the client's view. `answer` is displayed; `usage` is the gateway's usage object."""

    run: str
    asked: str
    answer: str
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    usage: dict[str, Any]
    right: bool | None = None


RUNS = (
    Run(
        "errand",
        "You are a careful agent. Use the tools when they help.",
        (
            Task(
                "What is the city of the owner of the lamp?",
                "The city is Oslo.",
                tools=("get_owner", "get_city", "get_weather", "get_price"),
            ),
        ),
    ),
    Run(
        "shopping",
        "You are a careful agent. Use the tools when they help.",
        (
            Task(
                "Which has the highest price: drum, mirror?",
                "The highest price is 78 for drum.",
                tools=("get_price", "get_owner", "get_city"),
            ),
        ),
    ),
    Run(
        "office",
        "You are a helpful assistant.",
        (
            Task(
                "Anna reports to Bruno. Felix reports to Greta. Bruno reports to Felix. Greta reports to Hugo. "
                "Who is the boss of Bruno?",
                "Felix",
            ),
            Task("What is 386 + 457?", "843"),
            Task("How many times is lamp in this list? lamp drum lamp mirror chair lamp", "3"),
            Task("Write as JSON: name Anna, city Oslo", '{"name": "Anna", "city": "Oslo"}'),
            Task("It is 21:40. What time is it in 5 hours and 45 minutes?", "03:25"),
            Task("Sort from low to high: 61, 17, 94, 35, 28, 80, 43, 59", "17, 28, 35, 43, 59, 61, 80, 94"),
        ),
    ),
)


def play(client: openai.OpenAI, run: Run) -> Iterator[Turn]:
    """Yield every turn as it ends. The last turn of a task has the verdict on its answer."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": run.system}]
    for task in run.tasks:
        messages.append({"role": "user", "content": task.question})
        asked = task.question
        for _ in range(MAX_CALLS + 1):
            turn, message = _ask(client, run, asked, messages, task)
            messages.append(message)
            calls = message.get("tool_calls") or []
            if not calls:
                turn.right = turn.answer.strip() == task.answer
                yield turn
                break
            yield turn
            for call in calls:
                result = _call(call["function"])
                asked = f"  {result}"
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        else:
            turn.right = False


def _ask(
    client: openai.OpenAI, run: Run, asked: str, messages: list[dict[str, Any]], task: Task
) -> tuple[Turn, dict[str, Any]]:
    started = time.perf_counter()
    extra: dict[str, Any] = {"tools": [_schema(name) for name in task.tools]} if task.tools else {}
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="auto",
        messages=messages,
        temperature=0,
        max_tokens=128,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-headway-run-id": run.id},
        **extra,
    )
    content, usage = "", None
    calls: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(
                    delta.index, {"id": delta.id, "type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["function"]["name"] += (delta.function and delta.function.name) or ""
                call["function"]["arguments"] += (delta.function and delta.function.arguments) or ""
    assert usage
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    shown = content or ", ".join(f"{c['function']['name']}({c['function']['arguments']})" for c in calls.values())
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens if details else 0) or 0
    headway = (usage.model_extra or {})["headway"]
    return Turn(run.name, asked, shown, time.perf_counter() - started, usage.prompt_tokens, cached, headway), message


def _call(function: dict[str, str]) -> str:
    """Return a tool's result as JSON. A wrong call gets an error message as its result."""
    argument, known = _WORLD.get(function["name"], ("", {}))
    try:
        value = json.loads(function["arguments"])[argument]
        return json.dumps({function["name"].removeprefix("get_"): known[value]})
    except (json.JSONDecodeError, KeyError, TypeError):
        return json.dumps({"error": f"no answer for {function['name']}({function['arguments']})"})


def _schema(name: str) -> dict[str, Any]:
    argument, _ = _WORLD[name]
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Get the {name.removeprefix('get_')} of a {argument}.",
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
