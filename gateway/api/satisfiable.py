"""Whether a finite value satisfies a JSON Schema: the least fixpoint over references, required properties, items and options.

It covers the keywords that `check_schema` takes. Patterns and formats count as satisfiable; the worker knows more about them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_PYTHON: Mapping[str, type] = {"string": str, "object": dict, "array": list, "null": type(None)}


class SatisfiableSchemas:
    """The subschemas of `root` that a finite value satisfies. References must resolve."""

    def __init__(self, root: Any, resolve: Mapping[str, Any]) -> None:
        self._resolve = resolve
        self._satisfied = set[int]()
        order, parents = self._walk(root)
        for schema in order:
            self._settle(schema)
        todo = [schema for schema in order if id(schema) not in self._satisfied]
        todo = [schema for schema in todo if self._settle(schema)]
        while todo:
            todo += [parent for parent in parents.get(id(todo.pop()), ()) if self._settle(parent)]

    def has(self, schema: Any) -> bool:
        return schema is not False and (not isinstance(schema, dict) or id(schema) in self._satisfied)

    def _walk(self, root: Any) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
        """Return the schemas in reach, parts before wholes where there is no cycle, and the schemas that use each."""
        order, parents = list[dict[str, Any]](), dict[int, list[dict[str, Any]]]()
        todo, seen = [(root, False)], set[int]()
        while todo:
            schema, is_done = todo.pop()
            if is_done:
                order.append(schema)
            elif isinstance(schema, dict) and id(schema) not in seen:
                seen.add(id(schema))
                todo.append((schema, True))
                for part in self._needed(schema):
                    if isinstance(part, dict):
                        parents.setdefault(id(part), []).append(schema)
                        todo.append((part, False))
        return order, parents

    def _needed(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the parts that can decide about the schema."""
        if "$ref" in schema:
            yield self._resolve[schema["$ref"]]
        for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
            yield from schema.get(name, ())
        properties = schema.get("properties") or {}
        yield from (properties[name] for name in schema.get("required", ()))
        yield schema.get("items", True)
        yield schema.get("additionalProperties", True)

    def _settle(self, schema: dict[str, Any]) -> bool:
        """Record whether a value satisfies the schema by the parts known so far. Return whether that is new."""
        if id(schema) in self._satisfied or not self._is_satisfied(schema):
            return False
        self._satisfied.add(id(schema))
        return True

    def _is_satisfied(self, schema: Mapping[str, Any]) -> bool:
        kind = schema.get("type", _TYPES)
        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        if "$ref" in schema:
            return self.has(self._resolve[schema["$ref"]])
        if "const" in schema:
            return _is_of(schema["const"], kinds)
        if "enum" in schema:
            return any(_is_of(value, kinds) for value in schema["enum"])
        if "allOf" in schema:
            return all(map(self.has, schema["allOf"]))
        options = schema.get("anyOf", schema.get("oneOf"))
        if options is not None:
            return any(map(self.has, options))
        return any(self._has_value(schema, kind) for kind in kinds)

    def _has_value(self, schema: Mapping[str, Any], kind: str) -> bool:
        match kind:
            case "object":
                return self._has_object(schema)
            case "array":
                return self._has_array(schema)
            case "string":
                return bool(schema.get("minLength", 0) <= schema.get("maxLength", math.inf))
            case "number" | "integer":
                return _has_number(schema, whole=kind == "integer")
            case _:
                return True

    def _has_object(self, schema: Mapping[str, Any]) -> bool:
        properties = schema.get("properties") or {}
        least = schema.get("minProperties", 0)
        if least > schema.get("maxProperties", math.inf):
            return False
        if least > len(properties) and not self.has(schema.get("additionalProperties", True)):
            return False
        return all(self.has(properties[name]) for name in schema.get("required", ()))

    def _has_array(self, schema: Mapping[str, Any]) -> bool:
        least, prefix = schema.get("minItems", 0), schema.get("prefixItems") or []
        if least > schema.get("maxItems", math.inf):
            return False
        if least > len(prefix) and not self.has(schema.get("items", True)):
            return False
        return all(map(self.has, prefix[: int(least)]))


def _has_number(schema: Mapping[str, Any], *, whole: bool) -> bool:
    lows = [schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf)]
    highs = [schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf)]
    low, high = max(lows), min(highs)
    if low == -math.inf or high == math.inf:
        return True
    if whole:
        low = math.floor(low) + 1 if low == lows[1] else math.ceil(low)
        high = math.ceil(high) - 1 if high == highs[1] else math.floor(high)
        return bool(low <= high)
    return bool(low < high or (low == high and low not in (lows[1], highs[1])))


def _is_of(value: Any, kinds: tuple[str, ...]) -> bool:
    """Return whether a JSON value is of one of the types."""
    match value:
        case bool():
            return "boolean" in kinds
        case int() | float():
            return "number" in kinds or ("integer" in kinds and value == value // 1)
        case _:
            return any(isinstance(value, python) and kind in kinds for kind, python in _PYTHON.items())
