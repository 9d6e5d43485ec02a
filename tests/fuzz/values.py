"""Values at the extremes of types: of the link's messages, of JSON, and of a JSON Schema."""

import math
import random
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

INTS = (0, 1, -1, 7, 16, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e9, 9e8, 1e300, -1e300, math.inf, -math.inf, math.nan, 0.5)
TEXTS = (
    "",
    "a",
    "stop",
    "\x00",
    "\x1b[31m",
    "<img src=x>",
    "é" * 300,
    "\u202e",
    "x" * 5_000,
    "../../etc/passwd",
    "{{ 1 }}",
    "[",
)


def extreme(rng: random.Random, kind: Any) -> Any:
    """Return a value of a type, with its parts at their extremes."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return extreme(rng, rng.choice(arguments))
    if origin is Literal:
        return rng.choice(arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(extreme(rng, arguments[0]) for _ in range(rng.choice((0, 1, 3))))
        return tuple(extreme(rng, argument) for argument in arguments)
    if origin is dict:
        return {extreme(rng, arguments[0]): extreme(rng, arguments[1]) for _ in range(rng.choice((0, 1, 3)))}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind(**{field.name: extreme(rng, field.type) for field in msgspec.structs.fields(kind)})
    return _plain(rng, kind)


def _plain(rng: random.Random, kind: Any) -> Any:
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        return rng.choice(INTS)
    if kind is float:
        return rng.choice(FLOATS)
    if kind is str:
        return rng.choice(TEXTS)
    if kind is bytes:
        return rng.randbytes(rng.choice((0, 1, 4, 16, 32, 40)))
    if kind is type(None):
        return None
    raise TypeError(f"no values of {kind}")


def one_changed(rng: random.Random, message: msgspec.Struct) -> msgspec.Struct:
    """Return a message with one to three of its fields at their extremes."""
    fields = msgspec.structs.fields(type(message))
    chosen = rng.sample(fields, min(len(fields), rng.randint(1, 3)))
    return msgspec.structs.replace(message, **{field.name: extreme(rng, field.type) for field in chosen})


def json_value(rng: random.Random, depth: int = 3) -> Any:
    kinds = ["null", "bool", "int", "float", "text"] + (["list", "object"] if depth else [])
    match rng.choice(kinds):
        case "null":
            return None
        case "bool":
            return rng.random() < 0.5
        case "int":
            return rng.choice((*INTS, 10**30))
        case "float":
            return rng.choice([value for value in FLOATS if math.isfinite(value)])
        case "text":
            return rng.choice(TEXTS)
        case "list":
            return [json_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        case _:
            return {rng.choice(TEXTS): json_value(rng, depth - 1) for _ in range(rng.randint(0, 3))}


def of_schema(rng: random.Random, schema: Any, schemas: dict[str, Any], depth: int = 6) -> Any:
    """Return a value of a JSON Schema, now and then another one."""
    if rng.random() < 0.03 or not isinstance(schema, dict) or depth == 0:
        return json_value(rng, 2)
    if reference := schema.get("$ref"):
        return of_schema(rng, schemas[reference.rpartition("/")[2]], schemas, depth - 1)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return of_schema(rng, rng.choice(options), schemas, depth)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return _object(rng, schema, schemas, depth)
        case "array":
            items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
            return [of_schema(rng, items, schemas, depth - 1) for _ in range(rng.choice((0, 1, 1, 2, 4)))]
        case "string":
            return rng.choice(TEXTS)
        case "integer":
            return rng.choice((schema.get("minimum", 0), schema.get("maximum", 8), 1, 5, *INTS))
        case "number":
            return rng.choice((schema.get("minimum", 0), schema.get("maximum", 1), 0.5, 1e300, -1.0))
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case _:
            return json_value(rng, 2)


def _object(rng: random.Random, schema: dict[str, Any], schemas: dict[str, Any], depth: int) -> dict[str, Any]:
    properties, required = schema.get("properties") or {}, set(schema.get("required") or ())
    names = [name for name in properties if name in required or rng.random() < 0.15]
    value = {name: of_schema(rng, properties[name], schemas, depth - 1) for name in names}
    if isinstance(inner := schema.get("additionalProperties"), dict) and rng.random() < 0.5:
        value[rng.choice(TEXTS)] = of_schema(rng, inner, schemas, depth - 1)
    return value


def changed_json(rng: random.Random, value: Any) -> Any:
    """Return the value with some part at any depth replaced, removed or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        inner = {**value}
        match rng.choice(("deeper", "deeper", "deeper", "remove", "add")):
            case "remove":
                del inner[name]
            case "add":
                inner[rng.choice(TEXTS)] = json_value(rng)
            case _:
                inner[name] = changed_json(rng, inner[name])
        return inner
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], changed_json(rng, value[at]), *value[at + 1 :], *(value if rng.random() < 0.05 else [])]
    return json_value(rng)


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return the data cut, or with some bytes replaced."""
    changed = bytearray(data)
    for _ in range(rng.randint(0, 3)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randint(0, len(changed))] if rng.random() < 0.1 else changed)
