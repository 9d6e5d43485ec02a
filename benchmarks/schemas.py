"""JSON Schemas like those of agents, generated from a seed: nested objects, lists, enums, bounds, formats, nullable fields."""

import random
from typing import Any

from backends.zoo.vocabulary import sentence

Schema = dict[str, Any]
MAX_DEPTH = 3


def schema_for(seed: int) -> Schema:
    """Return a schema. The outermost type is an object, as OpenAI's strict mode requires."""
    return _object(random.Random(seed), 0)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(1, 5 if depth == 0 else 3))
    properties = {name: _any(rng, depth + 1) for name in names}
    required = names if rng.random() < 0.7 else [name for name in names if rng.random() < 0.6]
    schema: Schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if rng.random() < 0.3:
        schema["description"] = sentence(rng)
    return schema


def _any(rng: random.Random, depth: int) -> Schema:
    kinds = [_string, _integer, _number, _boolean, _enum, _nullable, _array, _object]
    weights = [4, 3, 2, 2, 3, 1, 2, 2] if depth < MAX_DEPTH else [4, 3, 2, 2, 3, 0, 0, 0]
    return rng.choices(kinds, weights)[0](rng, depth)


def _string(rng: random.Random, depth: int) -> Schema:
    bounds: list[Schema] = [
        {},
        {"maxLength": rng.randint(3, 40)},
        {"minLength": 1, "maxLength": 20},
        {"pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
        {"format": rng.choice(["date", "time", "date-time", "uuid", "ipv4"])},
    ]
    return {"type": "string", **rng.choice(bounds)}


def _integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-20, 100)
    bounds: list[Schema] = [
        {},
        {"minimum": low},
        {"minimum": low, "maximum": low + rng.randint(0, 500)},
        {"exclusiveMinimum": 0},
    ]
    return {"type": "integer", **rng.choice(bounds)}


def _number(rng: random.Random, depth: int) -> Schema:
    bounds: list[Schema] = [{}, {"minimum": 0}, {"minimum": 0, "maximum": 1}]
    return {"type": "number", **rng.choice(bounds)}


def _boolean(rng: random.Random, depth: int) -> Schema:
    return {"type": "boolean"}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "enum": rng.sample(NAMES, rng.randint(1, 5))}


def _nullable(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth + 1), {"type": "null"}]}


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth + 1), "minItems": low, "maxItems": low + rng.randint(0, 3)}


NAMES = [
    *("city", "name", "count", "total", "items", "status", "date", "price"),
    *("unit", "note", "code", "level", "owner", "color", "size", "id"),
]
