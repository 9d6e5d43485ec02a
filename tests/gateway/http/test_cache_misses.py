"""`GET /v1/headway/runs/ID` says of each turn what it found in the cache, and why not more."""

from pathlib import Path
from typing import Any

import pytest

from gateway.runs.cache_miss import MAX_TURNS
from gateway.text.prompt_encoder import PromptEncoder
from tests.served import Served, ask, fake, serve

WORDS = " ".join(f"word {number}" for number in range(100))


async def send(served: Served, *contents: str) -> None:
    roles = ("system", *("user", "assistant") * 50)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    headers = {"x-headway-run-id": "r"}
    body = ask(messages=messages, model="nano")
    async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()


async def turns(served: Served) -> list[dict[str, Any]]:
    async with served.http.get(f"{served.url}/v1/headway/runs/r") as answer:
        (found,) = (await answer.json())["cache"].values()
        return list(found)


@pytest.mark.parametrize("capture", [False, True])
async def test_each_turn_has_a_cache_miss_reason(tmp_path: Path, capture: bool) -> None:
    async with serve(tmp_path, workers={"nano-0": fake("nano")}) as served:
        if capture:
            served.gateway.pipeline.preparer.encoder.prompt_encoder = PromptEncoder(capture=True)
        await send(served, WORDS, "at 9:15 " + WORDS, "yes", "more")
        await send(served, WORDS, "at 9:15 " + WORDS, "yes", "more", "yes", "and more")
        await send(served, WORDS, "at 9:16 " + WORDS, "yes", "more", "yes", "and more", "yes", "still")
        first, grown, changed = await turns(served)
        assert first["why"] == "first_turn" and "shared_tokens" not in first
        assert grown["why"] == "hit" and grown["cached_tokens"] > 0.9 * first["prompt_tokens"] - 16
        assert (changed["why"], changed["part"]) == ("changed", "message 1 (user)")
        assert 0 < changed["shared_tokens"] < first["prompt_tokens"]
        if capture:
            assert "9:15" in changed["before"] and "9:16" in changed["after"]
        else:
            assert "before" not in changed and "after" not in changed


async def test_a_chain_keeps_its_last_turns_only(tmp_path: Path) -> None:
    async with serve(tmp_path, workers={"nano-0": fake("nano")}) as served:
        for number in range(MAX_TURNS + 3):
            await send(served, "begin", f"question {number}")
        found = await turns(served)
        assert len(found) == MAX_TURNS and found[-1]["turn"] == MAX_TURNS + 3
