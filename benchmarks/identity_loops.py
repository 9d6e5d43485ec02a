"""Tool loops through the real API, several at once. Only the ids of their tool calls identify their run."""

import asyncio
from typing import Any, NamedTuple

import aiohttp

from backends.zoo.curriculum import CELLS, held_out
from backends.zoo.instance import Instance
from benchmarks.client import ask
from benchmarks.served import gateway

MODEL = "nano"
_SEED = 11
_AT_ONCE = 4


class Loops(NamedTuple):
    """Counts. `calls_back` are requests with a tool's result; `linked` of them continued the run of the call."""

    loops: int
    calls_back: int
    linked: int
    wrong_merges: int


def run_loops(instances_a_cell: int) -> Loops:
    instances = [one for skill, level in CELLS for one in held_out(skill, level, instances_a_cell, seed=_SEED) if one.tools]
    with gateway() as url:
        runs = asyncio.run(_all(url, instances))
    loops = [run for run in runs if len(run) > 1]
    back = sum(len(run) - 1 for run in loops)
    linked = sum(name == run[0] for run in loops for name in run[1:])
    firsts = [run[0] for run in runs if run]
    wrong = sum(name != run[0] and name in firsts for run in loops for name in run[1:])
    return Loops(len(loops), back, linked, wrong + len(firsts) - len(set(firsts)))


async def _all(url: str, instances: list[Instance]) -> list[list[str]]:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with aiohttp.ClientSession() as http:

        async def one(instance: Instance) -> list[str]:
            async with gate:
                return await _loop(http, url, instance)

        return await asyncio.gather(*(one(instance) for instance in instances))


async def _loop(http: aiohttp.ClientSession, url: str, instance: Instance) -> list[str]:
    """Return the run to which each request of one loop was assigned. A call of the model gets the next available result."""
    start = next(i for i, message in enumerate(instance.messages) if message["role"] == "assistant")
    results = [message["content"] for message in instance.messages if message["role"] == "tool"]
    messages: list[dict[str, Any]] = list(instance.messages[:start])
    runs: list[str] = []
    while True:
        body = {"model": MODEL, "messages": messages, "tools": instance.tools, "max_tokens": 100, "temperature": 0}
        answer = await ask(http, url, body)
        runs.append(answer.headway["run_id"])
        calls = answer.message.get("tool_calls", [])
        if not calls or len(runs) > len(results):
            return runs
        messages.append(answer.message)
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": results[len(runs) - 1]} for call in calls]
