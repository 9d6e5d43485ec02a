"""Ungraded exercises with long answers that reward finding the same token again: without them that skill comes very late.

nano had not learned to look up a key among four after 13M tokens of the graded skills alone, whose answers are short.
"""

import random
from itertools import pairwise

from backends.zoo.instance import Instance, ask
from backends.zoo.words import CITIES, NAMES, WORDS, code, made_up


def drill(rng: random.Random) -> Instance:
    return rng.choice((_repeat, _look_up, _look_up, _bosses))(rng)


def _item(rng: random.Random) -> str:
    return rng.choice((rng.choice(WORDS), rng.choice(NAMES), rng.choice(CITIES), made_up(rng), code(rng)))


def _items(rng: random.Random, size: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < size:
        found[_item(rng)] = None
    return list(found)


def _repeat(rng: random.Random) -> Instance:
    """Longer than any graded copy."""
    text = " ".join(_items(rng, rng.randint(14, 40)))
    return ask("drill", 0, text, f"Repeat: {text}", text)


def _look_up(rng: random.Random) -> Instance:
    """Every key of a dictionary asked once, in another order."""
    size = rng.randint(3, 16)
    items = _items(rng, 2 * size)
    pairs = list(zip(items[:size], items[size:], strict=True))
    link = rng.choice((" = ", ": ", " is ", " has "))
    text = ", ".join(f"{key}{link}{value}" for key, value in pairs)
    rng.shuffle(pairs)
    asked, answer = " ".join(key for key, _ in pairs), " ".join(value for _, value in pairs)
    return ask("drill", 0, text, f"{text}. Look up: {asked}", answer)


def _bosses(rng: random.Random) -> Instance:
    people = rng.sample(NAMES, rng.randint(4, 12))
    pairs = list(pairwise(people))
    lines = [f"{person} reports to {boss}." for person, boss in pairs]
    rng.shuffle(lines)
    rng.shuffle(pairs)
    question = f"{' '.join(lines)} Name the boss of each: {', '.join(person for person, _ in pairs)}"
    return ask("drill", 0, " ".join(lines), question, ", ".join(boss for _, boss in pairs))
