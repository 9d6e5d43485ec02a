"""The subset of JSON Schema that constrained output supports. Any other keyword is refused by name, never ignored.

Grammars cannot compare two values, check uniqueness, or apply two schemas at once.
"""

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.api.satisfiable import SatisfiableSchemas
from gateway.errors import UnsatisfiableSchema, UnsupportedParameter

ANNOTATIONS = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
    | {"$schema", "$id", "$comment", "$anchor", "$defs", "definitions"}
)
"""Keywords without effect on validity."""
KEYWORDS = frozenset(
    {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "required", "additionalProperties"}
    | {"minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern"}
    | {"format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "uri-reference"}
    | {"uri-template", "json-pointer", "relative-json-pointer"}
)
_ALONE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""Keywords that the grammar reads alone: it would ignore all others beside one of them."""
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_BY_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "maxProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
}
_NOT_TOGETHER = (
    ("pattern", "minLength"),
    ("pattern", "maxLength"),
    ("pattern", "format"),
    ("format", "minLength"),
    ("format", "maxLength"),
    ("properties", "minProperties"),
    ("properties", "maxProperties"),
)
_CLASS = re.compile(r"\\.|\[(?P<not>\^?)(?P<members>\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)
"""A character class or an escape. Matching escapes keeps an escaped bracket from starting a class."""
_ESCAPED = re.compile(r"\\?[\"\x00-\x1f]|\\\\|\\[nrtfv0]|\\c[A-Za-z]|\\(?:x|u00)(?:[01][0-9A-Fa-f]|22|5[Cc])")
"""Outside of classes: characters that JSON writes as an escape, but the grammar would write as one character."""
MAX_DEPTH = 100
MAX_BYTES = 128 * 1024
"""Bytes of a schema as JSON. Checking a larger one would block other requests."""
MAX_OPTIONS = 64
"""Options of `oneOf`. Each is compared with every other."""
MAX_PROPERTIES = 1_000
"""Properties of all objects of a schema together, and options of all its lists of options together."""
MAX_OPTIONAL = 100
"""Properties of an object that are not required. The grammar holds each pair of them: 100 are 3 MB of rules, 300 are 9 MB."""
MAX_MARKS = 8
"""Properties of an option that are compared: those with the fewest constants. A discriminator is one of them."""
MAX_STRICT_BYTES = 4 * MAX_BYTES
"""Bytes of all schemas of a request's strict tools together, as JSON."""

_WAYS_OUT = "give each recursion an end (an optional property, an empty list, `null`), and each range a value"


def check_schema(schema: Any, *, param: str) -> int:
    """Return the bytes of the schema as JSON. Raises UnsupportedParameter, with path and keyword, if output cannot be
    constrained by it, and UnsatisfiableSchema if no finite value satisfies it."""
    try:
        if (size := len(msgspec.json.encode(schema))) > MAX_BYTES:
            message = f"{param}: the schema has {size:,} bytes, at most {MAX_BYTES:,} are allowed: make it smaller"
            raise UnsupportedParameter(message, param=param)
        check = _Check(schema, param)
        check.run()
        if not SatisfiableSchemas(schema, check.references).has(schema):
            raise UnsatisfiableSchema(f"{param}: no finite value satisfies this schema: {_WAYS_OUT}", param=param)
        return size
    except RecursionError as error:
        raise UnsupportedParameter(f"{param}: the schema is nested too deeply: flatten it", param=param) from error
    except (TypeError, AttributeError, LookupError, ValueError) as error:  # a keyword's value has a wrong type
        raise UnsupportedParameter(f"{param}: this is not a valid JSON Schema: {error}"[:500], param=param) from error


class _Check:
    """`references` are the schemas that the references name, after `run`."""

    def __init__(self, root: Any, param: str) -> None:
        self._root, self._param = root, param
        self.references: dict[str, Any] = {}
        self._num_properties = self._num_options = self._num_pairs = 0

    def run(self) -> None:
        todo: list[tuple[Any, str, int]] = [(self._root, "", 0)]
        while todo:
            schema, path, depth = todo.pop()
            if schema is True:
                continue
            if not isinstance(schema, dict):
                raise self._refused(path, "a schema must be an object")
            if depth > MAX_DEPTH:
                raise self._refused(path, f"it is nested deeper than {MAX_DEPTH} levels: flatten it")
            self._check(schema, path)
            todo += [(child, f"{path}{place}", depth + 1) for place, child in _children(schema)]

    def _check(self, schema: dict[str, Any], path: str) -> None:
        asserting = [name for name in schema if name not in ANNOTATIONS]
        for name in asserting:
            if name not in KEYWORDS:
                raise self._refused(path, f"the keyword `{name[:64]}` is not supported: leave it out")
        for alone in _ALONE:
            beside = [name for name in asserting if name not in (alone, "type")]
            if alone in schema and beside:
                raise self._refused(path, f"the keyword `{beside[0]}` beside `{alone}` is not supported: merge the two")
        self._check_kinds(schema, path)
        self._check_counts(schema, path)
        self._check_values(schema, path)

    def _check_counts(self, schema: dict[str, Any], path: str) -> None:
        num_properties = len(schema.get("properties") or ())
        num_optional = num_properties - len(set(schema.get("required", ())))
        self._num_properties += num_properties
        self._num_options += sum(len(schema.get(name, ())) for name in ("anyOf", "oneOf"))
        self._num_pairs += num_optional**2
        if max(self._num_properties, self._num_options) > MAX_PROPERTIES:
            raise self._refused(path, f"over {MAX_PROPERTIES:,} properties or options in the schema: use fewer")
        if self._num_pairs > MAX_OPTIONAL**2:
            problem = f"over {MAX_OPTIONAL} optional properties in an object, or their pairs in several: require more"
            raise self._refused(path, problem)

    def _check_kinds(self, schema: dict[str, Any], path: str) -> None:
        kinds = _kinds(schema)
        unknown = [kind for kind in kinds if kind not in _TYPES]
        if unknown:
            raise self._refused(path, f"`type` {str(unknown[0])[:64]!r} is not a JSON Schema type")
        if "integer" in kinds:
            kinds = [*kinds, "number"]
        for kind, names in _BY_TYPE.items():
            keyword = next((name for name in schema if name in names), None)
            if keyword and not kinds:
                raise self._refused(path, f"the keyword `{keyword}` needs a `type`: add it")
            if keyword and kind not in kinds:
                raise self._refused(path, f"the keyword `{keyword}` does not apply to its `type`: leave it out")

    def _check_values(self, schema: dict[str, Any], path: str) -> None:
        if (ref := schema.get("$ref")) is not None:
            if not (isinstance(ref, str) and (target := self._resolved(ref)) is not None):
                raise self._refused(path, f"`$ref` {str(ref)[:100]!r} is not in this schema: use a local reference")
            self.references[ref] = target
        form = schema.get("format")
        if form is not None and form not in FORMATS:
            raise self._refused(path, f"the `format` {str(form)[:64]!r} is not supported: leave it out")
        if isinstance(pattern := schema.get("pattern"), str) and _needs_escapes(pattern):
            problem = "a `pattern` with a quote, a backslash or a control character is not supported: JSON escapes them"
            raise self._refused(path, problem)
        for name, other in _NOT_TOGETHER:
            if name in schema and other in schema:
                raise self._refused(path, f"the keyword `{other}` beside `{name}` is not supported: leave one out")
        if len(schema.get("allOf", ())) > 1:
            raise self._refused(path, "the keyword `allOf` with several schemas is not supported: merge them")
        if "oneOf" in schema and not self._disjoint(schema["oneOf"]):
            problem = f"needs {MAX_OPTIONS} options at most, of different types or with a distinguishing `const`"
            raise self._refused(path, f"the keyword `oneOf` {problem}: use `anyOf`")
        if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
            raise self._refused(path, "`enum` must be a list with at least one value")
        self._check_required(schema, path)

    def _check_required(self, schema: dict[str, Any], path: str) -> None:
        required, named = schema.get("required", []), schema.get("properties") or {}
        if not isinstance(required, list):
            raise self._refused(path, "`required` must be a list of names")
        for name in required:
            if name not in named:
                problem = f"the keyword `required` names {str(name)[:64]!r}, which is not in `properties`: add it"
                raise self._refused(path, problem)

    def _resolved(self, ref: str) -> Any:
        if ref == "#":
            return self._root
        if not ref.startswith("#/"):
            return None
        at: Any = self._root
        for part in ref[2:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            at = at.get(part) if isinstance(at, dict) else None
        return at

    def _disjoint(self, options: Any) -> bool:
        """Return whether types and constants prove that no value satisfies two of the options."""
        if not isinstance(options, list) or len(options) > MAX_OPTIONS:
            return False
        marks = [_marks(self._followed(option)) for option in options]
        return all(a.are_apart(b) for a, b in itertools.combinations(marks, 2))

    def _followed(self, schema: Any) -> dict[str, Any]:
        for _ in range(MAX_DEPTH):
            if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
                break
            schema = self._resolved(schema["$ref"])
        return schema if isinstance(schema, dict) else {}

    def _refused(self, path: str, problem: str) -> UnsupportedParameter:
        return UnsupportedParameter(f"{self._param}{path}: {problem}", param=f"{self._param}{path}"[:300])


def _needs_escapes(pattern: str) -> bool:
    """Return whether a matching text might need escapes in JSON. A class passes if it has at least one member that needs
    none."""

    def outside(match: "re.Match[str]") -> str:
        if match["members"] is None:
            return match[0]
        return "" if match["not"] or _ESCAPED.sub("", match["members"]) else match["members"]

    return _ESCAPED.search(_CLASS.sub(outside, pattern)) is not None


def _children(schema: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name in ("properties", "$defs", "definitions"):
        inner = schema.get(name)
        if isinstance(inner, dict):
            yield from ((f".{name}.{key[:64]}", value) for key, value in inner.items())
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        inner = schema.get(name)
        if isinstance(inner, list):
            yield from ((f".{name}[{n}]", value) for n, value in enumerate(inner))
    for name in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(name), dict):
            yield f".{name}", inner


def _kinds(schema: Mapping[str, Any]) -> list[Any]:
    kind = schema.get("type")
    return kind if isinstance(kind, list) else [kind] if kind is not None else []


class _Marks(NamedTuple):
    """Facts of one option that may tell it from others: its types, and the constants of its required properties."""

    kinds: frozenset[str]
    constants: Mapping[str, frozenset[Hashable]]

    def are_apart(self, other: "_Marks") -> bool:
        """Return whether no value satisfies both."""
        if self.kinds and other.kinds and self.kinds.isdisjoint(other.kinds):
            return True
        return any(
            (theirs := other.constants.get(name)) is not None and mine.isdisjoint(theirs)
            for name, mine in self.constants.items()
        )


def _marks(schema: Mapping[str, Any]) -> _Marks:
    """Return the facts of one option. Of its properties the first MAX_MARKS with constants count."""
    kinds = frozenset("number" if kind == "integer" else str(kind) for kind in _kinds(schema))
    properties = schema.get("properties") or {}
    constants: dict[str, frozenset[Hashable]] = {}
    for name in schema.get("required") or ():
        if values := _constants(properties.get(name)):
            constants[name] = frozenset(values)
    smallest = sorted(constants, key=lambda name: len(constants[name]))[:MAX_MARKS]
    return _Marks(kinds, {name: constants[name] for name in smallest})


def _constants(schema: Any) -> set[Hashable]:
    if not isinstance(schema, dict):
        return set()
    if "const" in schema:
        return {_hashable(schema["const"])}
    enum = schema.get("enum")
    return set(map(_hashable, enum)) if isinstance(enum, list) else set()


def _hashable(value: Any) -> Hashable:
    """Return a hashable form; equal values have equal forms."""
    if isinstance(value, dict):
        return "object", frozenset((name, _hashable(inner)) for name, inner in value.items())
    return ("array", *map(_hashable, value)) if isinstance(value, list) else value
