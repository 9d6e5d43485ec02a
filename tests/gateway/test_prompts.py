"""A chain's next prompt names its pages as if nothing were known of the one before."""

import asyncio
import random

from backends.wire import Sampling, page_names
from benchmarks.report import ROOT
from gateway.prompts import Prompt, Prompts, Target
from gateway.request import Message, Request
from gateway.text.model_text import ModelText


def a_request(words: list[str]) -> Request:
    return Request(
        model="auto",
        messages=tuple(Message(role="user", content=word) for word in words),
        sampling=Sampling(max_tokens=1),
    )


def test_names_of_a_growing_and_rewritten_chain_are_those_of_its_ids() -> None:
    text = ModelText.from_directory(ROOT / "backends" / "zoo" / "pico")
    targets = [Target("a", text, "one", 16, 4096), Target("b", text, "one", 16, 4096), Target("c", text, "two", 4, 4096)]
    rng, words, prompts = random.Random(0), ["begin"], Prompts()

    def built() -> dict[str, Prompt]:
        return asyncio.run(prompts.build(a_request(words), targets, chain="c", salt="t"))

    for _ in range(30):
        words = words[: rng.randint(1, len(words))] if rng.random() < 0.2 else [*words, "word " * rng.randrange(40)]
        for worker, _, fingerprint, page_size, _ in targets:
            prompt = built()[worker]
            named = page_names(prompt.data, page_size=page_size, fingerprint=fingerprint, cache_salt="t")
            assert prompt.names == named
    prompts.close()
