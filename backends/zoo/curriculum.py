"""The curriculum: fourteen skills of four levels, and endless conversations drawn from them.

Frozen before training: a change here makes the shipped weights' tables in docs/zoo.md wrong.
"""

import random
from collections.abc import Iterator

from backends.zoo import skills_numbers, skills_text, skills_tools
from backends.zoo.drills import drill
from backends.zoo.instance import LEVELS, Instance, Message, Side, Skill
from backends.zoo.vocabulary import CITIES, NAMES, sentence

SKILLS: dict[str, Skill] = {
    "arithmetic": skills_numbers.arithmetic,
    "clock": skills_numbers.clock,
    "compare": skills_numbers.compare,
    "copy": skills_text.copy,
    "count": skills_text.count,
    "extract": skills_text.extract,
    "format": skills_text.json_format,
    "hops": skills_text.hops,
    "pick": skills_numbers.pick,
    "recall": skills_text.recall,
    "sort": skills_numbers.sort,
    "swaps": skills_numbers.swaps,
    "tools": skills_tools.tools,
    "translate": skills_text.translate,
}
CELLS = tuple((skill, level) for skill in SKILLS for level in LEVELS)

_SKILL_WEIGHTS = {
    "arithmetic": 2.5,
    "clock": 1.5,
    "compare": 2.0,
    "count": 2.0,
    "format": 1.5,
    "hops": 1.5,
    "pick": 2.0,
    "swaps": 1.5,
    "tools": 1.5,
    "translate": 1.5,
}
"""How often a skill is drawn, against 1 for the others: what needs most examples."""

_EARLY_WEIGHTS, _LATE_WEIGHTS, _RAMP = (8, 4, 2, 1), (2, 2, 4, 4), 0.3

_GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Good morning", "Who are you?", "What can you do?", "What are you?", "Help")
_INTRODUCTION = (
    "I am a small demonstration model. I can copy, sort, count, compare, look up facts, calculate, write JSON and call tools."
)


def instance(rng: random.Random, skill: str, level: int, side: Side) -> Instance:
    """A fresh instance of one cell, from one side of the split."""
    while True:
        drawn = SKILLS[skill](rng, level)
        if drawn.side() == side:
            return drawn


def held_out(skill: str, level: int, size: int, *, seed: int = 0) -> list[Instance]:
    """`size` instances of one cell that no training run has seen, always the same for the same arguments."""
    rng = random.Random(f"held-out/{seed}/{skill}/{level}")
    drawn = [instance(rng, skill, level, "held-out") for _ in range(size)]
    if skill != "tools":  # further questions about the same text are for training
        for one in drawn:
            one.messages = one.messages[:2]
    return [with_system(rng, one) for one in drawn]


def training_cell(rng: random.Random, progress: float) -> tuple[str, int]:
    """Mostly easy levels at the start; hard ones, which need more examples, come more often as training goes on (0 to 1)."""
    grown = min(1.0, progress / _RAMP)
    weights = [early + grown * (late - early) for early, late in zip(_EARLY_WEIGHTS, _LATE_WEIGHTS, strict=True)]
    skill = rng.choices(tuple(SKILLS), [_SKILL_WEIGHTS.get(name, 1.0) for name in SKILLS])[0]
    return skill, rng.choices(LEVELS, weights)[0]


def _drill_share(progress: float) -> float:
    return 0.35 - 0.25 * min(1.0, progress / _RAMP)


def single(rng: random.Random, progress: float = 1.0, *, max_recall_level: int = 1) -> Instance:
    """One training instance with or without system text in front."""
    if rng.random() < 0.01:
        messages = [
            {"role": "user", "content": rng.choice(_GREETINGS)},
            {"role": "assistant", "content": _INTRODUCTION},
        ]
        return with_system(rng, Instance("greeting", 1, "", messages))
    if rng.random() < _drill_share(progress):
        return drill(rng, progress)
    skill, level = training_cell(rng, progress)
    if skill == "recall":
        level = min(level, max_recall_level)
    return with_system(rng, instance(rng, skill, level, "train"))


def conversations(rng: random.Random, progress: float = 1.0) -> Iterator[Instance]:
    """Short training conversations, without end; one in five has two to five turns of several skills."""
    while True:
        drawn = single(rng, progress)
        yield _joined(rng, drawn, rng.randint(1, 4), progress) if rng.random() < 0.2 else drawn


def long_conversation(rng: random.Random) -> Instance:
    """A training conversation of about 1k to 4k tokens: a long text with questions, or many turns of all skills."""
    if rng.random() < 0.5:
        skill_level = rng.choice((2, 3, 3, 4, 4))
        return with_system(rng, instance(rng, "recall", skill_level, "train"))
    return _joined(rng, single(rng, max_recall_level=2), rng.randint(10, 24), 1.0)


def _joined(rng: random.Random, first: Instance, num_more: int, progress: float) -> Instance:
    """One conversation; only the first turn may bring tools or system text."""
    joined = Instance("mixed", 0, "", list(first.messages), first.tools)
    for _ in range(num_more):
        turn = single(rng, progress)
        if not turn.tools and turn.messages[0]["role"] == "user":
            joined.messages += turn.messages
    return joined


def system_text(rng: random.Random) -> str:
    """Arbitrary text that changes no answer."""
    opening = rng.choice(
        (
            "You are a helpful assistant.",
            f"You are {rng.choice(NAMES)}, an assistant in {rng.choice(CITIES)}.",
            "Answer briefly.",
            "Follow the question exactly and answer with nothing else.",
            "You are a careful agent. Use the tools when they help.",
        )
    )
    return " ".join([opening, *(sentence(rng) for _ in range(rng.choice((0, 0, 1, 2, 4))))])


def with_system(rng: random.Random, drawn: Instance) -> Instance:
    if rng.random() < 0.4:
        system: Message = {"role": "system", "content": system_text(rng)}
        drawn.messages = [system, *drawn.messages]
    return drawn
