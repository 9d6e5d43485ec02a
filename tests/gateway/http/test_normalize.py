"""Turns whose system prompt begins with a line of this request only, and whose tools come in another order, hit the cache."""

from pathlib import Path
from typing import Any

import pytest

from tests.served import Served, fake, serve

SYSTEM = "You are a careful agent. " + " ".join(f"rule {number}." for number in range(80))
TOOLS = [
    {"name": name, "description": f"{name} things", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}
    for name in ("read", "edit", "bash")
]


def turn(number: int, **more: Any) -> dict[str, Any]:
    billing = f"x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={number:05x};"
    said = [{"role": role, "content": f"turn {n}"} for n in range(number) for role in ("user", "assistant")]
    return {
        "model": "nano",
        "max_tokens": 4,
        "system": [{"type": "text", "text": billing}, {"type": "text", "text": SYSTEM}],
        "messages": [*said, {"role": "user", "content": "and now"}],
        "tools": TOOLS[number % 3 :] + TOOLS[: number % 3],
        **more,
    }


async def cached(served: Served) -> list[float]:
    """Of three turns, the share of the second's and the third's prompt that was read from the cache."""
    shares = []
    for number in range(1, 4):
        headers = {"x-claude-code-session-id": "s"}
        async with served.http.post(f"{served.url}/v1/messages", json=turn(number), headers=headers) as answer:
            usage = (await answer.json())["usage"]
        shares.append(usage["cache_read_input_tokens"] / (usage["cache_read_input_tokens"] + usage["input_tokens"]))
    return shares[1:]


@pytest.mark.parametrize("steady", [True, False])
async def test_the_cache_is_hit_where_both_are_on_and_missed_where_they_are_off(tmp_path: Path, steady: bool) -> None:
    more = "" if steady else "text: {drop_lines: [], sort_tools: false}"
    async with serve(tmp_path, workers={"nano-0": fake("nano")}, more=more) as served:
        shares = await cached(served)
        assert min(shares) > 0.9 if steady else max(shares) < 0.1
        async with served.http.get(f"{served.url}/v1/headway/runs/s") as answer:
            (reports,) = (await answer.json())["cache"].values()
        if steady:
            assert [report["why"] for report in reports] == ["first_turn", "hit", "hit"]
            line, order = "message 0 (system): 1 line dropped", "tools: sorted by name"
            assert all(report["normalized"] == [line, order] for report in reports)
        else:
            assert [report["why"] for report in reports] == ["first_turn", "changed", "changed"]
            assert not any("normalized" in report for report in reports)


async def test_explain_lists_normalized_parts(tmp_path: Path) -> None:
    async with serve(tmp_path, workers={"nano-0": fake("nano")}) as served:
        functions = [{"type": "function", "function": {"name": name}} for name in ("b", "a")]
        body = {"model": "nano", "messages": [{"role": "user", "content": "hi"}], "tools": functions}
        async with served.http.post(f"{served.url}/v1/headway/explain", json=body) as answer:
            assert (await answer.json())["normalized"] == ["tools: sorted by name"]


async def test_forced_call_keeps_its_tool_after_sorting(tmp_path: Path) -> None:
    async with serve(tmp_path, workers={"nano-0": fake("nano")}) as served:
        choice = {"type": "tool", "name": "read"}
        async with served.http.post(f"{served.url}/v1/messages", json=turn(1, tool_choice=choice)) as answer:
            assert answer.status == 200
        grammar = served.workers["nano-0"].submitted[-1].sampling.grammar
        assert grammar is not None and "read" in str(grammar) and "edit" not in str(grammar)
