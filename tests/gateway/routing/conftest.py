"""Made-up outcomes of the shipped curriculum: the large tier is nearly always right, the small one by level."""

import random
from functools import cache

import pytest

from backends.zoo import curriculum
from backends.zoo.instance import Instance, Side
from gateway.request import Message, Tool
from gateway.training.outcome import Outcome

SMALL_IS_RIGHT = {1: 0.99, 2: 0.95, 3: 0.45, 4: 0.15}
LARGE_IS_RIGHT = {1: 0.99, 2: 0.99, 3: 0.92, 4: 0.9}
Labelled = tuple[Instance, Outcome]


def outcome_of(one: Instance, rng: random.Random) -> Outcome:
    asked = []
    for message in one.messages:
        if message["role"] == "assistant":
            break
        asked.append(Message(role=message["role"], content=message["content"]))
    tools = tuple(
        Tool(name=t["function"]["name"], description=t["function"]["description"], parameters=t["function"]["parameters"])
        for t in one.tools
    )
    right = {"small": rng.random() < SMALL_IS_RIGHT[one.level], "large": rng.random() < LARGE_IS_RIGHT[one.level]}
    return Outcome(messages=tuple(asked), tools=tools, outcomes=right)


@cache
def labelled(side: Side, per_cell: int) -> tuple[Labelled, ...]:
    rng = random.Random(f"{side}/{per_cell}")
    drawn = [curriculum.instance(rng, skill, level, side) for skill, level in curriculum.CELLS for _ in range(per_cell)]
    rng.shuffle(drawn)
    return tuple((one, outcome_of(one, rng)) for one in drawn)


@pytest.fixture(scope="session")
def training_rows() -> list[Outcome]:
    return [row for _, row in labelled("train", 30)]


@pytest.fixture(scope="session")
def held_out() -> tuple[Labelled, ...]:
    return labelled("held-out", 20)
