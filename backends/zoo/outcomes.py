"""Lab instances and whether each shipped model answers them right, as the router's training data.

`python -m backends.zoo.outcomes --small DIR --large DIR --size N --seed S --out FILE.jsonl`. Instances come from the training
side of the split, so that held-out ones stay unseen by the router too.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from backends.zoo.curriculum import CELLS, instance, with_system
from backends.zoo.evaluate import generator
from backends.zoo.instance import Instance, agrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=Path, required=True)
    parser.add_argument("--large", type=Path, required=True)
    parser.add_argument("--size", type=int, default=150, help="instances a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    small, large = generator(args.small), generator(args.large)
    with args.out.open("w") as file:
        for skill, level in CELLS:
            drawn = [_first_turn(_draw(args.seed, skill, level, number)) for number in range(args.size)]
            asked = [(one.messages[:-1], one.tools) for one in drawn]
            answers = {"small": small(asked), "large": large(asked)}
            right = {
                tier: [agrees(a, one.messages[-1]) for a, one in zip(answers[tier], drawn, strict=True)] for tier in answers
            }
            for number, one in enumerate(drawn):
                outcomes = {tier: right[tier][number] for tier in right}
                confidence = {"small": round(answers["small"][number]["confidence"], 4)}
                file.write(json.dumps(_line(one, outcomes, confidence)) + "\n")
            shares = " ".join(f"{tier} {sum(rights) / len(rights):.2f}" for tier, rights in right.items())
            print(f"{skill:12} {level} {shares}", file=sys.stderr, flush=True)


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
