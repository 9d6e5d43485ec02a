"""Sends one chat completion over HTTP and times it as a client sees it."""

import time
from typing import Any, NamedTuple

import aiohttp
import msgspec


class Answer(NamedTuple):
    """An answer. `ttft_s` is from sending the request to the first chunk with content; `headway` is the gateway's usage
    object."""

    message: dict[str, Any]
    ttft_s: float
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    headway: dict[str, Any]


async def ask(http: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
    """Stream one answer. Raises RuntimeError with the gateway's message on an error status or error event."""
    started = time.perf_counter()
    first = 0.0
    content: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = msgspec.json.decode(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta = choice["delta"]
                if not first and (delta.get("content") or delta.get("tool_calls") or choice.get("finish_reason")):
                    first = time.perf_counter()
                content.append(delta.get("content") or "")
                _gather(calls, delta.get("tool_calls") or [])
    message: dict[str, Any] = {"role": "assistant", "content": "".join(content)}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    ended = time.perf_counter()
    times = first - started, ended - started
    return Answer(message, *times, usage["prompt_tokens"], cached, usage["completion_tokens"], usage["headway"])


def _gather(calls: dict[int, dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        call = calls.setdefault(delta["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = delta.get("id") or call["id"]
        for part in ("name", "arguments"):
            call["function"][part] += delta.get("function", {}).get(part) or ""
