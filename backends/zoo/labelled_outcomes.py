"""Lab instances and whether each tier of a running gateway answers them right, as the router's training data.

`python -m backends.zoo.labelled_outcomes --url http://127.0.0.1:8080 --size N --seed S --out FILE.jsonl`. Instances come from
the training side of the split, so that held-out ones stay unseen by the router too. `confidence` is the least probability among
the first tokens of the small answer.
"""

import argparse
import asyncio
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import aiohttp

from backends.zoo.curriculum import CELLS, instance, with_system
from backends.zoo.instance import Instance, agrees

TIERS = ("small", "large")
CONFIDENCE_TOKENS = 32
_MAX_TOKENS = 160
_AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="a running gateway, such as http://127.0.0.1:8080")
    parser.add_argument("--size", type=int, default=120, help="instances a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asyncio.run(_write(args.url, args.size, args.seed, args.out))


async def _write(url: str, size: int, seed: int, out: Path) -> None:
    with out.open("w") as file:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_AT_ONCE)) as http:
            for skill, level in CELLS:
                drawn = [_first_turn(_draw(seed, skill, level, number)) for number in range(size)]
                told = [await asyncio.gather(*(_ask(http, url, tier, one) for one in drawn)) for tier in TIERS]
                for one, *answers in zip(drawn, *told, strict=True):
                    outcomes = {tier: right for tier, (right, _) in zip(TIERS, answers, strict=True)}
                    file.write(json.dumps(_line(one, outcomes, {TIERS[0]: answers[0][1]})) + "\n")
                shares = (sum(right for right, _ in answers) / size for answers in told)
                rights = " ".join(f"{tier} {share:.2f}" for tier, share in zip(TIERS, shares, strict=True))
                print(f"{skill:12} {level} {rights}", file=sys.stderr, flush=True)


async def _ask(http: aiohttp.ClientSession, url: str, tier: str, one: Instance) -> tuple[bool, float]:
    """Whether it was right, and how sure the tier was of its least sure token."""
    body: dict[str, Any] = {"model": tier, "messages": one.messages[:-1], "max_tokens": _MAX_TOKENS, "temperature": 0}
    body |= {"logprobs": True} | ({"tools": one.tools} if one.tools else {})
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        choice = (await response.json())["choices"][0]
    told = [token["logprob"] for token in choice["logprobs"]["content"][:CONFIDENCE_TOKENS]]
    return agrees(choice["message"], one.messages[-1]), round(math.exp(min(told, default=0.0)), 6)


def _draw(seed: int, skill: str, level: int, number: int) -> Instance:
    rng = random.Random(f"outcomes/{seed}/{skill}/{level}/{number}")
    return with_system(rng, instance(rng, skill, level, "train"))


def _first_turn(drawn: Instance) -> Instance:
    """Up to the first answer: what the router sees when it decides."""
    end = next(i for i, message in enumerate(drawn.messages) if message["role"] == "assistant")
    drawn.messages = drawn.messages[: end + 1]
    return drawn


def _line(one: Instance, outcomes: dict[str, bool], confidence: dict[str, float]) -> dict[str, object]:
    said = {"messages": one.messages[:-1], "tools": one.tools, "outcomes": outcomes, "confidence": confidence}
    return said | {"skill": one.skill, "level": one.level}


if __name__ == "__main__":
    main()
