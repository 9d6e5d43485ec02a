"""A few agent runs through a gateway, so that a dashboard has something to show."""

import asyncio
from typing import Any

import aiohttp

TOOLS = [{"type": "function", "function": {"name": "get_city", "parameters": {"type": "object", "properties": {}}}}]


async def play(
    http: aiohttp.ClientSession, url: str, *, runs: int = 4, turns: int = 5, pause_s: float = 0.02, key: str = ""
) -> None:
    """Runs one after the other, each with a history that grows; every third request names its model."""
    for number in range(runs):
        messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a careful agent. " * 6}]
        for turn in range(turns):
            messages.append({"role": "user", "content": f"Step {turn} of task {number}: what comes next? " * 3})
            body: dict[str, Any] = {
                "model": ("auto", "small", "large")[(number + turn) % 3],
                "messages": messages,
                "max_tokens": 12 + 4 * (turn % 3),
                "stream": bool(turn % 2),
            }
            headers = {"x-headway-run-id": f"agent-{number}"} | ({"authorization": f"Bearer {key}"} if key else {})
            async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                await answer.read()
                assert answer.status == 200, await answer.text()
            messages.append({"role": "assistant", "content": f"Answer {turn}."})
            await asyncio.sleep(pause_s)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with http.post(f"{url}/v1/chat/completions", json={"model": "auto", "n": 3}, headers=headers) as refused:
        assert refused.status == 400
