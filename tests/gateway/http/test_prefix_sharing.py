"""What one tenant sent is not cached for another, unless both opted in, and then only what no user said."""

from pathlib import Path
from typing import Any

import pytest

from tests.served import ask, fake, serve

SYSTEM = "Answer every question in one word, and never ask back. " * 8
SAID = "The same long question from both of them, word for word. " * 8


@pytest.mark.parametrize(("first", "second"), [("system", "system"), ("none", "none"), ("system", "none"), ("none", "system")])
async def test_a_second_tenant_gets_the_system_part_from_the_cache_when_both_opted_in(
    tmp_path: Path, first: str, second: str
) -> None:
    tenants = f"a: {{keys: [one], share_prefix: {first}}}, b: {{keys: [two], share_prefix: {second}}}"
    async with serve(tmp_path, workers={"nano-0": fake("nano")}, more=f"tenants: {{{tenants}}}") as served:

        async def cached(key: str, said: str = SAID) -> tuple[int, int]:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
            body: dict[str, Any] = ask() | {"messages": messages}
            headers = {"authorization": f"Bearer {key}"}
            async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
                usage = (await answer.json())["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

        (nothing, _), (own, prompt) = await cached("one"), await cached("one")
        assert nothing == 0 and own >= prompt - 32
        got, _ = await cached("two")
        if (first, second) == ("system", "system"):
            _, system = await cached("two", "x")
            assert system - 32 <= got <= system < prompt / 1.5
        else:
            assert got == 0
        submits = list(served.workers["nano-0"].submitted)
        assert [bool(submit.shared_tokens) for submit in submits[:3]] == [first == "system"] * 2 + [second == "system"]
        assert [submit.cache_salt for submit in submits[:3]] == ["a", "a", "b"]
