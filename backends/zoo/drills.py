"""Ungraded exercises with long answers that reward finding the same token again: without them that skill comes very late.

nano had not learned to look up a key among four after 13M tokens of the graded skills alone, whose answers are short.
"""

import random
from itertools import pairwise

from backends.zoo.instance import Instance, ask
from backends.zoo.vocabulary import CITIES, NAMES, WORDS, code, made_up

VERBS = ("get", "find", "read", "fetch", "check", "lookup")


def drill(rng: random.Random, progress: float) -> Instance:
    """Choices among two at first, among up to sixteen once `progress` (0 to 1) has come to a quarter.

    Among many, a net is content for very long with answering any of them; between two it soon finds out which.
    """
    most = 2 + round(14 * min(1.0, 4 * progress))
    return rng.choice((_repeat, _look_up, _look_up, _bosses, _owners, _full_names))(rng, most)


def _item(rng: random.Random) -> str:
    return rng.choice((rng.choice(WORDS), rng.choice(NAMES), rng.choice(CITIES), made_up(rng), code(rng)))


def _items(rng: random.Random, size: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < size:
        found[_item(rng)] = None
    return list(found)


def _repeat(rng: random.Random, most: int) -> Instance:
    """Longer than any graded copy."""
    text = " ".join(_items(rng, rng.randint(14, 16 + 2 * most)))
    return ask("drill", 0, text, f"Repeat: {text}", text)


def _look_up(rng: random.Random, most: int) -> Instance:
    """Every key of a dictionary asked once, in another order."""
    size = rng.randint(2, most)
    items = _items(rng, 2 * size)
    pairs = list(zip(items[:size], items[size:], strict=True))
    link = rng.choice((" = ", ": ", " is ", " has "))
    text = ", ".join(f"{key}{link}{value}" for key, value in pairs)
    rng.shuffle(pairs)
    asked, answer = " ".join(key for key, _ in pairs), " ".join(value for _, value in pairs)
    return ask("drill", 0, text, f"{text}. Look up: {asked}", answer)


def _bosses(rng: random.Random, most: int) -> Instance:
    people = rng.sample(NAMES, 1 + rng.randint(2, most))
    pairs = list(pairwise(people))
    lines = [f"{person} reports to {boss}." for person, boss in pairs]
    rng.shuffle(lines)
    rng.shuffle(pairs)
    question = f"{' '.join(lines)} Name the boss of each: {', '.join(person for person, _ in pairs)}"
    return ask("drill", 0, " ".join(lines), question, ", ".join(boss for _, boss in pairs))


def _owners(rng: random.Random, most: int) -> Instance:
    """From a value back to what stands before it."""
    people = rng.sample(NAMES, rng.randint(2, most))
    values = rng.choice((rng.sample(WORDS, len(people)), [code(rng) for _ in people]))
    pairs = list(zip(people, values, strict=True))
    link = rng.choice((" has ", " ", ": ", " | "))
    text = ", ".join(f"{person}{link}{value}" for person, value in pairs)
    rng.shuffle(pairs)
    question = f"{text}. Whose is each: {', '.join(value for _, value in pairs)}"
    return ask("drill", 0, text, question, ", ".join(person for person, _ in pairs))


def _full_names(rng: random.Random, most: int) -> Instance:
    """From the end of a compound back to all of it, as a tool's name is found by what it is asked for."""
    ends = rng.sample(WORDS, rng.randint(2, most))
    names = [f"{rng.choice(VERBS)}_{end}" for end in ends]
    text = rng.choice((", ", "\n", '", "')).join(names)
    asked = rng.sample(range(len(names)), len(names))
    question = f"{text}. In full: {', '.join(ends[i] for i in asked)}"
    return ask("drill", 0, text, question, ", ".join(names[i] for i in asked))
