"""Claim: the part of a prompt that an agent chain has sent before costs almost no time.

Method: a chain of 20 turns that grows past 3,000 tokens on nano, through HTTP. Warm: the chain itself, turn after turn. Cold:
each turn's same prompt after a different beginning, so that no page of it is resident. Both are streamed; TTFT is the client's,
median of three chains. The ceiling of the hit rate is every token that the chain sent or received before.
"""

import asyncio
import random
import statistics
from typing import Any

import aiohttp

from backends.zoo.vocabulary import sentence
from benchmarks.client import Answer, ask
from benchmarks.report import Target, arguments, finish, progress, table
from benchmarks.served import gateway

MODEL = "nano"
TURNS, TOKENS = 20, 3200
_TOKENS_A_SENTENCE = 11


def main() -> None:
    args = arguments(__doc__).parse_args()
    with gateway() as url:
        chains = [asyncio.run(_chain(url, seed)) for seed in range(1 if args.quick else 3)]
    turns = [_median_turn(number + 1, [chain[number] for chain in chains]) for number in range(TURNS)]
    print(table(("turn", "prompt tokens", "cold TTFT ms", "warm TTFT ms", "cached"), turns))
    cold_ms, warm_ms = turns[-1][2], turns[-1][3]
    cached = sum(turn.warm.cached_tokens for chain in chains for turn in chain)
    ceiling = sum(turn.reusable for chain in chains for turn in chain)
    prompt = sum(turn.warm.prompt_tokens for chain in chains for turn in chain)
    results = {
        "ttft_cold_ms": cold_ms,
        "ttft_warm_ms": warm_ms,
        "speedup": cold_ms / warm_ms,
        "hit_rate": cached / prompt,
        "hit_rate_ceiling": ceiling / prompt,
    }
    share = results["hit_rate"] / results["hit_rate_ceiling"]
    targets = [Target("speedup", results["speedup"], ">=", 7.0), Target("hit_rate_of_ceiling", share, ">=", 0.98)]
    finish("prefix_cache", results, targets)


class Turn:
    """A turn. `reusable` is the number of prompt tokens that were in the previous turn or its answer."""

    def __init__(self, warm: Answer, cold: Answer, reusable: int) -> None:
        self.warm, self.cold, self.reusable = warm, cold, reusable


async def _chain(url: str, seed: int) -> list[Turn]:
    rng = random.Random(seed)
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"You are agent {rng.randrange(10**6)}. {_text(rng)}"}]
    turns: list[Turn] = []
    async with aiohttp.ClientSession() as http:
        for number in range(TURNS):
            messages.append(
                {"role": "user", "content": f"{_text(rng)} What is {rng.randrange(10, 90)} + {rng.randrange(1, 10)}?"}
            )
            # The cold twin goes first, so that its pages cannot evict the chain's between two warm turns.
            cold_messages = [
                {"role": "system", "content": f"Cold {rng.randrange(10**6)}. " + messages[0]["content"]},
                *messages[1:],
            ]
            cold = await ask(http, url, _body(cold_messages))
            warm = await ask(http, url, _body(messages), {"x-headway-run-id": f"prefix-{seed}"})
            before = turns[-1].warm if turns else None
            reusable = before.prompt_tokens + before.output_tokens if before else 0
            turns.append(Turn(warm, cold, reusable))
            messages.append({"role": "assistant", "content": warm.message["content"]})
            progress(f"chain {seed} turn {number + 1}/{TURNS}: {warm.prompt_tokens} tokens")
    return turns


def _text(rng: random.Random) -> str:
    return " ".join(sentence(rng) for _ in range(TOKENS // (TURNS + 1) // _TOKENS_A_SENTENCE))


def _body(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0}


def _median_turn(number: int, turns: list[Turn]) -> tuple[int, int, float, float, int]:
    cold = statistics.median(1000 * t.cold.ttft_s for t in turns)
    warm = statistics.median(1000 * t.warm.ttft_s for t in turns)
    return number, turns[0].warm.prompt_tokens, cold, warm, turns[0].warm.cached_tokens


if __name__ == "__main__":
    main()
