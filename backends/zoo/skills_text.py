"""Skills on words and facts. Each is a function of (randomness, level); its level table is the whole difficulty."""

import json
import random
from itertools import pairwise

from backends.zoo.instance import Instance, ask
from backends.zoo.vocabulary import CITIES, COLORS, NAMES, NOUNS, THINGS, WORDS, code, made_up, sentence

_COPY = {1: (2, 4), 2: (5, 8), 3: (6, 8), 4: (10, 13)}
_EXTRACT = {1: (1, 3), 2: (1, 5), 3: (5, 3), 4: (7, 3)}
_RECALL_TOKENS = {1: 120, 2: 500, 3: 1500, 4: 3000}
_RECALL_FACTS = {1: 3, 2: 8, 3: 20, 4: 40}
_HOPS = {1: (4, 1), 2: (8, 1), 3: (7, 2), 4: (6, 3)}
_COUNT = {1: (5, 3), 2: (8, 4), 3: (15, 4), 4: (22, 4)}
_FORMAT = {1: 2, 2: 4, 3: 5, 4: 8}
_TRANSLATE = {1: (4, 2), 2: (6, 4), 3: (5, 3), 4: (7, 5)}


def copy(rng: random.Random, level: int) -> Instance:
    """Repeat a list; the hard half in reverse order."""
    items = [rng.choice((rng.choice(WORDS), made_up(rng))) for _ in range(rng.randint(*_COPY[level]))]
    text = " ".join(items)
    if level <= 2:
        return ask("copy", level, text, rng.choice(("Repeat: {}", "Say exactly: {}", "Copy this: {}")).format(text), text)
    order = rng.choice(("Reverse the order: {}", "Write these words backwards, last word first: {}"))
    return ask("copy", level, text, order.format(text), " ".join(reversed(items)))


def extract(rng: random.Random, level: int) -> Instance:
    """Read one field of a record; the hard half out of a table, level 4 by two conditions at once."""
    num_rows, num_fields = _EXTRACT[level]
    if num_rows == 1:
        row = {
            "name": rng.choice(NAMES),
            "city": rng.choice(CITIES),
            "item": rng.choice(THINGS),
            "color": rng.choice(COLORS),
            "id": code(rng),
        }
        fields = rng.sample(list(row), num_fields)
        record, wanted = "; ".join(f"{f}: {row[f]}" for f in fields), rng.choice(fields)
        question = rng.choice(("Record: {0}. What is the {1}?", "{0}. Give the {1}.", "Read the {1} from this record: {0}"))
        return ask("extract", level, (record, wanted), question.format(record, wanted), row[wanted])
    names = rng.sample(NAMES, num_rows)
    cities, colors = rng.sample(CITIES, 3), rng.sample(COLORS, 3)
    pairs = rng.sample([(city, color) for city in cities for color in colors], num_rows)
    table = "\n".join(f"{n} | {city} | {color}" for n, (city, color) in zip(names, pairs, strict=True))
    chosen = rng.randrange(num_rows)
    city, color = pairs[chosen]
    if level == 3:
        wanted, answer = rng.choice((("city", city), ("color", color)))
        question = f"name | city | color\n{table}\nWhat is the {wanted} of {names[chosen]}?"
        return ask("extract", level, (table, wanted, chosen), question, answer)
    question = f"name | city | color\n{table}\nWho is in {city} with {color}?"
    return ask("extract", level, (table, chosen), question, names[chosen])


def recall(rng: random.Random, level: int) -> Instance:
    """Find a fact in a long text; the distance is the difficulty. Several questions are asked about one text."""
    num_facts = _RECALL_FACTS[level]
    keys = rng.sample([f"{name}'s {thing}" for name in rng.sample(NAMES, 8) for thing in rng.sample(THINGS, 6)], num_facts)
    facts = {key: code(rng) for key in keys}
    lines = [f"The number of {key} is {value}." for key, value in facts.items()]
    # A fact costs about 13 tokens and a filler sentence about 11 (measured with the shipped tokenizer).
    num_fillers = max(0, (_RECALL_TOKENS[level] - 40 - 13 * num_facts) // 11)
    lines += [sentence(rng) for _ in range(num_fillers)]
    rng.shuffle(lines)
    questions = [(f"What is the number of {key}?", facts[key]) for key in rng.sample(keys, 3)]
    return _about("recall", level, f"Read this.\n{' '.join(lines)}", questions, separator="\n")


def hops(rng: random.Random, level: int) -> Instance:
    """Follow who reports to whom, one to three steps; the hard half says everybody on the way."""
    num_people, num_hops = _HOPS[level]
    people = rng.sample(NAMES, num_people + 1)
    bosses = dict(pairwise(people))
    starts = rng.sample(range(num_people - num_hops + 1), 3)
    lines = [f"{person} reports to {boss}." for person, boss in bosses.items()]
    rng.shuffle(lines)
    boss_of = "the boss of " * (num_hops - 1)
    everybody = " Name all on the way." if num_hops > 1 else ""
    questions = [
        (f"Who is {boss_of}the boss of {people[s]}?{everybody}", ", ".join(people[s + 1 : s + num_hops + 1])) for s in starts
    ]
    return _about("hops", level, " ".join(lines), questions, separator=" ")


def count(rng: random.Random, level: int) -> Instance:
    """How often a word stands in a list."""
    length, num_words = _COUNT[level]
    words = rng.sample(NOUNS, num_words)
    wanted = words[0]
    items = [wanted] * rng.randint(1, min(9, length - 1))
    items += [rng.choice(words[1:]) for _ in range(length - len(items))]
    rng.shuffle(items)
    text = " ".join(items)
    question = rng.choice(("How many times is {1} in this list? {0}", "Count {1}: {0}"))
    return ask("count", level, (text, wanted), question.format(text, wanted), items.count(wanted))


def json_format(rng: random.Random, level: int) -> Instance:
    """Write JSON: a flat object in the easy half, names grouped by city in the hard half."""
    size = _FORMAT[level]
    if level <= 2:
        row: dict[str, str | int] = {
            "name": rng.choice(NAMES),
            "city": rng.choice(CITIES),
            "item": rng.choice(THINGS),
            "age": rng.randint(20, 79),
        }
        fields = rng.sample(list(row), size)
        text = ", ".join(f"{f} {row[f]}" for f in fields)
        question = rng.choice(("Write as JSON: {}", "Turn this into a JSON object: {}"))
        return ask("format", level, text, question.format(text), json.dumps({f: row[f] for f in fields}))
    names, cities = rng.sample(NAMES, size), rng.sample(CITIES, 3)
    rows = [(name, rng.choice(cities)) for name in names]
    groups: dict[str, list[str]] = {}
    for name, city in rows:
        groups.setdefault(city, []).append(name)
    text = ", ".join(f"{name} in {city}" for name, city in rows)
    return ask("format", level, text, f"Group the names by city, as JSON: {text}", json.dumps(groups))


def translate(rng: random.Random, level: int) -> Instance:
    """Use a dictionary given in the question; the hard half through two dictionaries, saying what each word is in both."""
    num_entries, num_words = _TRANSLATE[level]
    source = rng.sample(NOUNS, num_entries)
    target = rng.sample(sorted({made_up(rng) for _ in range(3 * num_entries)}), num_entries)
    pairs = [f"{s} = {t}" for s, t in zip(source, target, strict=True)]
    rng.shuffle(pairs)
    text, verb, between, answers = ", ".join(pairs), "Translate", " ", target
    if level >= 3:
        last = rng.sample(COLORS, num_entries)
        more = [f"{t} = {a}" for t, a in zip(target, last, strict=True)]
        rng.shuffle(more)
        text, verb, between = f"{text}. {', '.join(more)}", "Translate twice", ", "
        answers = [f"{t} {a}" for t, a in zip(target, last, strict=True)]
    questions = []
    for _ in range(2):
        asked = rng.sample(range(num_entries), num_words)
        questions.append((f"{verb}: {' '.join(source[i] for i in asked)}", between.join(answers[i] for i in asked)))
    return _about("translate", level, f"{text}.", questions, separator=" ")


def _about(skill: str, level: int, text: str, questions: list[tuple[str, str]], *, separator: str) -> Instance:
    """Several questions about one text. The text alone is the key: all that is asked of it is on one side of the split."""
    first, *others = questions
    drawn = ask(skill, level, text, f"{text}{separator}{first[0]}", first[1])
    for question, answer in others:
        drawn.messages += ask(skill, level, text, question, answer).messages
    return drawn
