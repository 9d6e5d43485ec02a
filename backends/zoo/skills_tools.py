"""Multi-turn tool use: choose among distractors, fill the arguments, use the result, answer."""

import json
import random
from typing import Any, NamedTuple

from backends.zoo.instance import Instance, Message
from backends.zoo.vocabulary import CITIES, COLORS, NAMES, THINGS, code, made_up

_VERBS = ("get", "find", "read", "fetch", "check", "lookup")
_NUM_TOOLS = {1: 2, 2: 4, 3: 4, 4: 6}


class Relation(NamedTuple):
    """`attribute` of a `subject` is an `object`; a tool answers one relation."""

    subject: str
    attribute: str
    object: str


_RELATIONS = tuple(
    Relation(*row.split())
    for row in (
        "item owner person",
        "item shop shop",
        "item price number",
        "item color color",
        "item weight number",
        "person boss person",
        "person city city",
        "person phone number",
        "person age number",
        "person team team",
        "city mayor person",
        "city weather weather",
        "city code number",
        "shop city city",
        "shop manager person",
        "team leader person",
        "team size number",
    )
)
_WEATHER = ("rain", "sun", "snow", "wind", "fog")


def _value(rng: random.Random, kind: str) -> str | int:
    match kind:
        case "person":
            return rng.choice(NAMES)
        case "city":
            return rng.choice(CITIES)
        case "item":
            return rng.choice(THINGS)
        case "color":
            return rng.choice(COLORS)
        case "weather":
            return rng.choice(_WEATHER)
        case "number":
            return rng.choice((rng.randint(1, 99), int(code(rng))))
        case _:
            return made_up(rng, syllables=3)


def _tool(rng: random.Random, relation: Relation) -> dict[str, Any]:
    words = rng.choice(("Get the {1} of a {0}.", "Returns the {1} for a {0}.", "The {1} of one {0}."))
    return {
        "type": "function",
        "function": {
            "name": f"{rng.choice(_VERBS)}_{relation.attribute}",
            "description": words.format(relation.subject, relation.attribute),
            "parameters": {
                "type": "object",
                "properties": {relation.subject: {"type": "string"}},
                "required": [relation.subject],
            },
        },
    }


class _Episode:
    """The tools on offer and the conversation so far; `call` plays one tool call and its result."""

    def __init__(self, rng: random.Random, needed: list[Relation], num_tools: int) -> None:
        self.rng = rng
        attributes = {r.attribute for r in needed}
        others = [r for r in _RELATIONS if r.attribute not in attributes]
        rng.shuffle(others)
        offered = list(dict.fromkeys(needed))
        for relation in others:
            if len(offered) < num_tools and relation.attribute not in {r.attribute for r in offered}:
                offered.append(relation)
        rng.shuffle(offered)
        tools = {relation: _tool(rng, relation) for relation in offered}
        self.tools = list(tools.values())
        self.name = {relation: tool["function"]["name"] for relation, tool in tools.items()}
        self.messages: list[Message] = []
        self.key: list[object] = []

    def call(self, relation: Relation, subject: str | int, value: str | int) -> None:
        index = len(self.messages)
        function = {"name": self.name[relation], "arguments": json.dumps({relation.subject: str(subject)})}
        call = {"id": f"call_{index}", "type": "function", "function": function}
        self.messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        result = json.dumps({relation.attribute: value})
        self.messages.append({"role": "tool", "tool_call_id": f"call_{index}", "content": result})
        self.key.append((relation, subject, value))


def tools(rng: random.Random, level: int) -> Instance:
    """One call; one among more tools; two calls in a chain; three in a chain, or one for each of two to four subjects."""
    if level == 4 and rng.random() < 0.5:
        return _compare(rng)
    num_calls = {1: 1, 2: 1, 3: 2, 4: 3}[level]
    path = _path(rng, num_calls)
    episode = _Episode(rng, path, _NUM_TOOLS[level])
    subject = first = _value(rng, path[0].subject)
    for relation in path:
        value = _value(rng, relation.object)
        episode.call(relation, subject, value)
        subject = value
    phrase = " of ".join(f"the {relation.attribute}" for relation in reversed(path))
    the = "the " if path[0].subject in ("item", "shop", "team") else ""
    question = rng.choice(("What is {0} of {1}{2}?", "Tell me {0} of {1}{2}.", "I need {0} of {1}{2}."))
    answer = f"The {path[-1].attribute} is {subject}."
    return _instance(level, episode, question.format(phrase, the, first), answer)


def _compare(rng: random.Random) -> Instance:
    relation = rng.choice([r for r in _RELATIONS if r.attribute in ("price", "age", "size", "weight")])
    size = rng.randint(2, 4)
    if relation.subject == "team":
        subjects = [made_up(rng, syllables=3) for _ in range(size)]
    else:
        subjects = rng.sample(NAMES if relation.subject == "person" else THINGS, size)
    values = rng.sample(range(10, 100), size)
    episode = _Episode(rng, [relation], _NUM_TOOLS[4])
    for subject, value in zip(subjects, values, strict=True):
        episode.call(relation, subject, value)
    best = subjects[values.index(max(values))]
    question = f"Which has the highest {relation.attribute}: {', '.join(subjects)}?"
    return _instance(4, episode, question, f"The highest {relation.attribute} is {max(values)} for {best}.")


def _path(rng: random.Random, length: int) -> list[Relation]:
    while True:
        path = [rng.choice(_RELATIONS)]
        while len(path) < length:
            used = {r.attribute for r in path}
            onward = [r for r in _RELATIONS if r.subject == path[-1].object and r.attribute not in used]
            if not onward:
                break
            path.append(rng.choice(onward))
        if len(path) == length:
            return path


def _instance(level: int, episode: _Episode, question: str, answer: str) -> Instance:
    messages = [{"role": "user", "content": question}, *episode.messages, {"role": "assistant", "content": answer}]
    return Instance("tools", level, repr((episode.key, sorted(episode.name.values()))), messages, episode.tools)
