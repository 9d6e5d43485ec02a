"""The largest legal request of every kind, while another tenant's requests are counted in turns of the event loop.

The work of a turn is the number of calls that it makes, which does not depend on the machine. The longest turn is printed.
"""

import asyncio
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.served import Served, ask, serve

MAX_CALLS = 250_000
"""Calls in one turn: some tens of milliseconds. Ten thousand messages take about twenty calls each."""
MAX_TURNS = 400
"""Turns until the other tenant's answers: about forty without the large request."""
KEYS = "tenants: {a: {keys: [a]}, b: {keys: [b]}}"
TEXT_BYTES = 9_000_000
Body = dict[str, Any]


def _option(number: int) -> Body:
    enums = {f"e{n}": {"enum": [n + value for value in range(45)]} for n in range(8)}
    properties = enums | {"k": {"const": number}}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _strict(number: int, options: int) -> Body:
    choice = {"oneOf": [_option(n) for n in range(options)]}
    parameters = {"type": "object", "properties": {"x": choice}, "required": ["x"], "additionalProperties": False}
    return {"type": "function", "function": {"name": f"t{number}", "strict": True, "parameters": parameters}}


def _tool(number: int, properties: int) -> Body:
    parameters = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(properties)}}
    return {"type": "function", "function": {"name": f"t{number}", "parameters": parameters}}


def _call(number: int) -> Body:
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _schema(properties: int) -> Body:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(properties)}}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}}


KINDS: dict[str, Callable[[], Body]] = {
    "strict tools of many options": lambda: {"tools": [_strict(n, 64) for n in range(110)]},
    "strict tools within the bound": lambda: {"tools": [_strict(n, 64) for n in range(6)]},
    "tools": lambda: {"tools": [_tool(n, 90) for n in range(999)]},
    "a schema": lambda: {"response_format": _schema(4_000)},
    "metadata": lambda: {"metadata": {f"k{n}": "v" for n in range(250_000)}},
    "nested metadata": lambda: {"metadata": {f"k{n}": [[]] * 10 for n in range(25_000)}},
    "stops": lambda: {"stop": ["x" * 512] * 4},
    "messages": lambda: {"messages": [{"role": "user", "content": "x" * 900}] * 9_999},
    "parts": lambda: {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 90_000}]},
    "calls": lambda: {"messages": [{"role": "assistant", "content": None, "tool_calls": [*map(_call, range(40_000))]}]},
    "one text": lambda: {"messages": [{"role": "user", "content": "x y" * (TEXT_BYTES // 3)}]},
    "system lines": lambda: {"messages": [{"role": "system", "content": "Today is \n" * (TEXT_BYTES // 11)}]},
    "biases": lambda: {"model": "small", "logit_bias": {str(n): 1.0 for n in range(10_000)}},
    "a pattern": lambda: {"response_format": {"type": "regex", "pattern": "a?" * 4_999}},
    "unknown fields": lambda: {f"u{n}": 1 for n in range(250_000)},
}


@dataclass(slots=True)
class Turns:
    """Turns of the loop since the start, and the costliest."""

    number: int = 0
    calls: int = 0
    most_calls: int = 0
    longest_s: float = 0.0


@contextmanager
def counted_turns(loop: Any) -> Iterator[Turns]:
    """Count the loop's turns, and the calls in each."""
    turns, run_once, select, began = Turns(), loop._run_once, loop._selector.select, 0.0

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            turns.calls += 1

    def selected(timeout: float | None) -> Any:
        nonlocal began
        ready = select(timeout)
        began = time.perf_counter()
        return ready

    def turn() -> None:
        run_once()
        turns.longest_s = max(turns.longest_s, time.perf_counter() - began)
        turns.most_calls = max(turns.most_calls, turns.calls)
        turns.number, turns.calls = turns.number + 1, 0

    loop._run_once, loop._selector.select = turn, selected
    sys.setprofile(profile)
    try:
        yield turns
    finally:
        sys.setprofile(None)
        del loop._run_once, loop._selector.select


async def other(one: Served) -> None:
    headers = {"authorization": "Bearer b"}
    async with one.http.get(f"{one.url}/livez") as answer:
        assert answer.status == 200
    async with one.http.post(f"{one.url}/v1/chat/completions", json=ask(max_tokens=1), headers=headers) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("kind", KINDS)
async def test_largest_request_of_a_kind_delays_no_other_tenant(tmp_path: Path, kind: str) -> None:
    body = json.dumps(ask(max_tokens=1) | KINDS[kind](), separators=(",", ":")).encode()
    headers = {"authorization": "Bearer a", "content-type": "application/json"}
    async with serve(tmp_path, more=KEYS) as one:
        loop = asyncio.get_running_loop()
        with counted_turns(loop) as turns:
            large = asyncio.create_task(_status(one, body, headers))
            others = 0
            while not large.done():
                before = turns.number
                await other(one)
                others = max(others, turns.number - before)
        status = large.result()
    print(f"{kind}: {len(body):,} bytes, {status}: {turns.longest_s * 1e3:.1f} ms, {turns.most_calls:,} calls, {others} turns")
    assert status in (200, 400, 413)
    assert turns.most_calls <= MAX_CALLS
    assert others <= MAX_TURNS


async def _status(one: Served, body: bytes, headers: dict[str, str]) -> int:
    async with one.http.post(f"{one.url}/v1/chat/completions", data=io.BytesIO(body), headers=headers) as answer:
        await answer.read()
        return answer.status


async def test_headers_of_the_largest_size_delay_no_other_tenant(tmp_path: Path) -> None:
    async with serve(tmp_path, more=KEYS) as one:
        headers = {"authorization": "Bearer a"} | {f"x-h{n}": "v" * 80 for n in range(500)}
        with counted_turns(asyncio.get_running_loop()) as turns:
            status = await _status(one, json.dumps(ask(max_tokens=1)).encode(), headers)
            await other(one)
        print(f"headers: {status}: {turns.longest_s * 1e3:.1f} ms, {turns.most_calls:,} calls")
        assert status in (200, 400, 431) and turns.most_calls <= MAX_CALLS
