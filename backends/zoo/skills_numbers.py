"""Skills on numbers and order. Each is a function of (randomness, level); its level table is the whole difficulty."""

import random

from backends.zoo.instance import Instance, ask
from backends.zoo.vocabulary import COLORS, NAMES

_SWAPS = {1: (3, 1), 2: (5, 2), 3: (5, 3), 4: (5, 4)}
_SORT = {1: 3, 2: 5, 3: 8, 4: 11}
_FILTER = {1: 4, 2: 6, 3: 8, 4: 7}
_COMPARE = {1: 2, 2: 5, 3: 8, 4: 8}


def arithmetic(rng: random.Random, level: int) -> Instance:
    """Add and subtract: one digit without and with a carry, two digits, three digits."""
    a, b = rng.randrange(10, 100), rng.randrange(1, 10)
    add = rng.random() < 0.5
    match level:
        case 1:
            ones = a % 10
            b = rng.randint(0, 9 - ones) if add else rng.randint(0, ones)
        case 3:
            b = rng.randrange(10, 100)
        case 4:
            a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
        case _:
            pass
    if not add:
        a, b = max(a, b), min(a, b)
    plus, minus = rng.choice((("+", "-"), ("plus", "minus")))
    question = rng.choice(("What is {}?", "Calculate {}.", "{} = ?")).format(f"{a} {plus if add else minus} {b}")
    return ask("arithmetic", level, (a, add, b), question, a + b if add else a - b)


def clock(rng: random.Random, level: int) -> Instance:
    """Add a time span to a time of day: hours, minutes within the hour, over the hour, over midnight."""
    hour, minute = rng.randrange(24), rng.randrange(60)
    hours, minutes = 0, 0
    match level:
        case 1:
            hour = rng.randrange(23)
            hours = rng.randint(1, min(4, 23 - hour))
        case 2:
            minute = rng.randrange(50)
            minutes = rng.randint(1, 9 - minute % 10) if minute % 10 < 9 else 10
        case 3:
            hour = rng.randrange(23)
            minutes = rng.randrange(60 - minute, 60) if minute else rng.randrange(10, 60)
        case _:
            hours, minutes = rng.randint(2, 20), rng.randrange(5, 60)
    parts = [f"{hours} hours"] * (hours > 0) + [f"{minutes} minutes"] * (minutes > 0)
    span = " and ".join(parts)
    total = (hour + hours) * 60 + minute + minutes
    question = rng.choice(("It is {0}. What time is it in {1}?", "What time is {1} after {0}?"))
    answer = f"{total // 60 % 24:02d}:{total % 60:02d}"
    return ask("clock", level, (hour, minute, span), question.format(f"{hour:02d}:{minute:02d}", span), answer)


def swaps(rng: random.Random, level: int) -> Instance:
    """Follow a coin under cups that are swapped; at level 2 only one of the two swaps matters."""
    num_cups, num_swaps = _SWAPS[level]
    cups = rng.sample(COLORS, num_cups)
    coin = start = rng.choice(cups)
    pairs: list[tuple[str, str]] = []
    if level == 2:
        free = rng.sample(cups, 4)
        pairs = [(free[0], free[1]), (free[2], free[3])]
    else:
        pairs = [tuple(rng.sample(cups, 2)) for _ in range(num_swaps)]  # type: ignore[misc]
    for a, b in pairs:
        coin = b if coin == a else a if coin == b else coin
    moves = " ".join(f"Swap {a} and {b}." for a, b in pairs)
    question = f"Cups: {', '.join(cups)}. The coin is under {start}. {moves} Where is the coin?"
    return ask("swaps", level, (cups, start, pairs), question, coin)


def sort(rng: random.Random, level: int) -> Instance:
    """Sort two-digit numbers."""
    numbers = rng.sample(range(10, 100), _SORT[level])
    down = rng.random() < 0.5
    text = ", ".join(map(str, numbers))
    order = rng.choice(("from high to low", "descending")) if down else rng.choice(("from low to high", "ascending"))
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return ask("sort", level, (numbers, down), f"Sort {order}: {text}", answer)


def pick(rng: random.Random, level: int) -> Instance:
    """Keep what passes a condition: one bound, then bound and parity, then rows between two bounds."""
    size = _FILTER[level]
    numbers = rng.sample(range(10, 100), size)
    low = rng.randint(25, 70)
    text = ", ".join(map(str, numbers))
    match level:
        case 1 | 2:
            kept = [n for n in numbers if n > low]
            question = f"Which of these are above {low}? {text}"
        case 3:
            even = rng.random() < 0.5
            kept = [n for n in numbers if n > low and (n % 2 == 0) == even]
            question = f"Which of these are {'even' if even else 'odd'} and above {low}? {text}"
        case _:
            high = low + rng.randint(15, 28)
            names = rng.sample(NAMES, size)
            rows = list(zip(names, numbers, strict=True))
            names = [name for name, n in rows if low < n < high]
            text = ", ".join(f"{name} {n}" for name, n in rows)
            question = f"Who is between {low} and {high}? {text}"
            return ask("pick", level, question, question, ", ".join(names) or "none")
    return ask("pick", level, question, question, ", ".join(map(str, kept)) or "none")


def compare(rng: random.Random, level: int) -> Instance:
    """The largest or smallest number, then whose it is, then whose is second."""
    size = _COMPARE[level]
    numbers = rng.sample(range(100, 1000) if level >= 3 else range(10, 1000), size)
    most = rng.random() < 0.5
    ranked = sorted(numbers, reverse=most)
    if level <= 2:
        text = ", ".join(map(str, numbers))
        word = ("larger" if most else "smaller") if size == 2 else ("largest" if most else "smallest")
        return ask("compare", level, (numbers, most), f"Which is {word}: {text}?", ranked[0])
    names = rng.sample(NAMES, size)
    text = ", ".join(f"{name} {n}" for name, n in zip(names, numbers, strict=True))
    rank = "" if level == 3 else "second "
    word = "most" if most else "least"
    question = f"{text}. Who has the {rank}{word}?"
    return ask("compare", level, question, question, names[numbers.index(ranked[level - 3])])
