"""A chain's next prompt names its pages as if nothing were known of the one before."""

import asyncio
import random

from backends.wire import Sampling, page_hashes
from benchmarks.report import ROOT
from gateway.request import Message, Request
from gateway.runs.cache_miss import PromptChange
from gateway.text.model_text import ModelText
from gateway.text.prompt_encoder import Prompt, PromptEncoder, Target


def a_request(words: list[str]) -> Request:
    return Request(
        model="auto",
        messages=tuple(Message(role="user", content=word) for word in words),
        sampling=Sampling(max_tokens=1),
    )


def test_page_hashes_of_a_growing_and_rewritten_chain_follow_its_ids() -> None:
    text = ModelText.from_directory(ROOT / "backends" / "zoo" / "pico")
    targets = [Target("a", text, "one", 16, 4096), Target("b", text, "one", 16, 4096), Target("c", text, "two", 4, 4096)]
    rng, words, prompt_encoder = random.Random(0), ["begin"], PromptEncoder()

    def built() -> dict[str, Prompt]:
        return asyncio.run(prompt_encoder.build(a_request(words), targets, chain="c", salt="t"))

    for _ in range(30):
        words = words[: rng.randint(1, len(words))] if rng.random() < 0.2 else [*words, "word " * rng.randrange(40)]
        for worker, _, fingerprint, page_size, _ in targets:
            prompt = built()[worker]
            named = page_hashes(prompt.data, page_size=page_size, fingerprint=fingerprint, cache_salt="t")
            assert list(prompt.page_hashes) == named
    prompt_encoder.close()


def test_only_pages_before_user_text_have_shared_hashes() -> None:
    text = ModelText.from_directory(ROOT / "backends" / "zoo" / "pico")
    targets, prompt_encoder = [Target("a", text, "one", 4, 4096)], PromptEncoder()

    def built(tenant: str, said: str, *, system: str = "Answer in one word. " * 20, shares: bool = True) -> Prompt:
        words = (Message(role="system", content=system), Message(role="user", content=said), Message(role="user", content="x"))
        request = Request(model="auto", messages=words if system else words[1:], sampling=Sampling(max_tokens=1))
        return asyncio.run(prompt_encoder.build(request, targets, chain=tenant, salt=tenant, shares_system=shares))["a"]

    def common(one: Prompt, other: Prompt) -> int:
        return sum(name in other.page_hashes for name in one.page_hashes)

    one, same, other = built("t", "the same " * 20), built("u", "the same " * 20), built("u", "another")
    assert one.data == same.data
    assert one.shared_tokens == same.shared_tokens == other.shared_tokens
    assert 0 < common(one, same) == common(one, other) == one.shared_tokens // 4 < len(one.page_hashes)
    assert common(one, built("t", "the same " * 20)) == len(one.page_hashes)
    assert common(one, built("u", "the same " * 20, shares=False)) == 0
    assert common(built("t", "the same " * 20, shares=False), built("u", "the same " * 20, shares=False)) == 0
    assert common(built("t", "a", system="Answer."), built("u", "b", system="Never answer. " * 20)) < 4
    assert built("t", "a " * 99, system="").shared_tokens <= 8
    prompt_encoder.close()


def test_text_of_an_ended_run_is_forgotten() -> None:
    text = ModelText.from_directory(ROOT / "backends" / "zoo" / "pico")
    targets, prompt_encoder = [Target("a", text, "one", 4, 4096)], PromptEncoder()
    request = Request(model="auto", messages=(Message(role="user", content="hello"),), sampling=Sampling(max_tokens=1))

    def change(chain: str) -> PromptChange | None:
        return asyncio.run(prompt_encoder.build(request, targets, chain=chain, salt=""))["a"].change

    assert change("one") is None and change("two") is None
    prompt_encoder.forget(["one", "never was"])
    assert change("one") is None and change("two") is not None
    prompt_encoder.forget(["one", "two"])
    assert prompt_encoder._kept_chars == 0 and not prompt_encoder._kept
    prompt_encoder.close()
