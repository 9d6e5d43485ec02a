"""What of a value does not fit a type, and where, in our own words. msgspec finds that something is wrong; its words change.

Only what fails is looked into: that the rest fits is left to msgspec, at its speed.
"""

import re
from collections.abc import Callable, Iterable
from operator import ge, gt, le, lt
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Raw

_WORDS = {str: "str", int: "int", float: "float", bool: "bool", NoneType: "null", dict: "object", tuple: "array", list: "array"}
_ITEMS = msgspec.json.Decoder(list[Raw])
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_SHOWN_CHARS = 64
_UNKNOWN_PROBLEM = "the value does not fit"
_MAX_SEARCHED_ITEMS = 20_000
"""Each takes half a microsecond of the event loop. No array that has a bound of its own may be longer."""


class Mismatch(NamedTuple):
    """`path` is such as `messages[2].role`; there a field is `missing` or `unknown`, a `tag` selects no kind of object, or the
    value has a `problem`."""

    path: str
    problem: str = ""
    missing: str | None = None
    unknown: str | None = None
    tag: str | None = None


def find_mismatch(text: bytes | Raw, kind: Any, path: str = "") -> Mismatch | None:
    """One in a JSON value; None where all fits. Raises msgspec.DecodeError or RecursionError on what is no JSON."""
    return None if _fits(text, kind) else _misfit(text, kind, path)


def _misfit(text: bytes | Raw, kind: Any, path: str) -> Mismatch:
    """Of a value that does not fit."""
    got = _kind_of(text)
    arms = [arm for arm in _arms(kind) if _takes(_plain(arm), got)]
    if got == "object" and arms:
        return _in_object(text, arms, path)
    if got == "array" and arms:
        return _in_array(text, arms[0], path)
    try:
        value = msgspec.json.decode(text) if got not in ("object", "array") else {} if got == "object" else []
    except msgspec.ValidationError:
        return Mismatch(path, "the number is out of range")
    return Mismatch(path, wrong(value, kind) or _UNKNOWN_PROBLEM)


def wrong(value: Any, kind: Any) -> str:
    """What is wrong with a plain value; empty if nothing is known to be."""
    arms = _arms(kind)
    got = "array" if isinstance(value, list | tuple) else _WORDS.get(type(value), type(value).__name__)
    fitting = [arm for arm in arms if _takes(_plain(arm), got)]
    if not fitting:
        return f"expected `{' | '.join(_words(arms))}`, got `{got}`"
    return next((problem for problem in (_broken_rule(value, arm) for arm in fitting) if problem), "")


def takes_text(kind: Any) -> bool:
    return any(_takes(_plain(arm), "str") for arm in _arms(kind))


def _fits(text: bytes | Raw, kind: Any) -> bool:
    try:
        msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        return False
    return True


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _arms(kind: Any) -> list[Any]:
    """The members of a union, null last; any other type is the only one."""
    plain = _plain(kind)
    if get_origin(plain) not in (Union, UnionType):
        return [kind]
    return sorted(get_args(plain), key=lambda arm: arm is NoneType)


def _kind_of(text: bytes | Raw) -> str:
    start = bytes(text).lstrip()
    match start[:1]:
        case b"{":
            return "object"
        case b"[":
            return "array"
        case b'"':
            return "str"
        case b"t" | b"f":
            return "bool"
        case b"n":
            return "null"
    return "float" if re.search(rb"[.eE]", start) else "int"


def _word(plain: Any) -> str:
    """A type's name as JSON has it."""
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return "object"
    if get_origin(plain) is Literal:
        return "str" if any(isinstance(one, str) for one in get_args(plain)) else "int"
    return _WORDS.get(get_origin(plain) or plain, "any")


def _words(arms: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(_word(_plain(arm)) for arm in arms))


def _takes(plain: Any, got: str) -> bool:
    word = _word(plain)
    return word in ("any", got) or {word, got} == {"int", "float"}


def _in_object(text: bytes | Raw, arms: list[Any], path: str) -> Mismatch:
    fields = _FIELDS.decode(text)
    structs = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, msgspec.Struct)]
    if not structs:
        return _in_dict(fields, arms[0], path)
    config = structs[0].__struct_config__
    if config.tag_field is None:
        return _in_struct(fields, structs[0], path)
    if config.tag_field not in fields:
        return Mismatch(path, missing=config.tag_field)
    at = joined(path, config.tag_field)
    tag = _value(fields[config.tag_field])
    if not isinstance(tag, str):
        return _misfit(fields[config.tag_field], str, at)
    tags = {struct.__struct_config__.tag: struct for struct in structs}
    if tag not in tags:
        return Mismatch(at, f"unknown '{tag[:_SHOWN_CHARS]}': use {_alternatives(tags)}", tag=tag[:_SHOWN_CHARS])
    return _in_struct(fields, tags[tag], path)


def _in_struct(fields: dict[str, Raw], struct: type[msgspec.Struct], path: str) -> Mismatch:
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    config = struct.__struct_config__
    unknown = [name for name in fields if name not in known and name != config.tag_field]
    if unknown and config.forbid_unknown_fields:
        return Mismatch(path, unknown=unknown[0])
    missing = [name for name, field in known.items() if field.required and name not in fields]
    if missing:
        return Mismatch(path, missing=missing[0])
    given = [name for name in fields if name in known]
    if not given:
        return Mismatch(path, _UNKNOWN_PROBLEM)
    texts, kinds = [fields[name] for name in given], [known[name].type for name in given]
    return _among(texts, kinds, lambda number: joined(path, given[number]))


def _in_dict(fields: dict[str, Raw], kind: Any, path: str) -> Mismatch:
    name_kind, value_kind = get_args(_plain(kind)) or (str, Any)
    for name in fields:
        if problem := wrong(name, name_kind):
            return Mismatch(path, f"a name in it: {problem}")
    return _in_items(list(fields.values()), value_kind, path, lambda number: f"{path}[...]")


def _in_array(text: bytes | Raw, kind: Any, path: str) -> Mismatch:
    items = _ITEMS.decode(text)
    if problem := _broken_rule(items, kind):
        return Mismatch(path, problem)
    item_kind = (get_args(_plain(kind)) or (Any,))[0]
    return _in_items(items, item_kind, path, lambda number: f"{path}[{number}]")


def _in_items(items: list[Raw], kind: Any, path: str, path_of: Callable[[int], str]) -> Mismatch:
    if len(items) > _MAX_SEARCHED_ITEMS:
        return Mismatch(path, f"one of its {len(items):,} values does not fit")
    return _among(items, [kind] * len(items), path_of) if items else Mismatch(path, _UNKNOWN_PROBLEM)


def _among(texts: list[Raw], kinds: list[Any], path_of: Callable[[int], str]) -> Mismatch:
    """Of several values of which one does not fit: the longest if it is no other, so that a long text is read few times."""
    longest = max(range(len(texts)), key=lambda number: memoryview(texts[number]).nbytes)
    decoders: dict[int, Callable[[Raw], Any]] = {}
    for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if id(kind) not in decoders:
            decoders[id(kind)] = msgspec.json.Decoder(kind).decode
        try:
            if number != longest:
                decoders[id(kind)](text)
        except msgspec.ValidationError:
            return _misfit(text, kind, path_of(number))
    return _misfit(texts[longest], kinds[longest], path_of(longest))


def _value(text: Raw) -> Any:
    return msgspec.json.decode(text) if _kind_of(text) == "str" else None


def _broken_rule(value: Any, kind: Any) -> str:
    """Of a value of the right kind: the one of a Literal or of a Meta that it breaks."""
    plain = _plain(kind)
    if get_origin(plain) is Literal:
        return "" if value in get_args(plain) else f"must be one of {_alternatives(map(str, get_args(plain)))}"
    if plain is int and isinstance(value, float) and not value.is_integer():
        return "expected `int`, got `float`"
    rules = (_breaks(value, _word(plain), one) for one in getattr(kind, "__metadata__", ()) if isinstance(one, Meta))
    return next((problem for problem in rules if problem), "")


def _breaks(value: Any, word: str, rule: Meta) -> str:
    if rule.pattern is not None and not re.search(rule.pattern, value):
        return f"must be {rule.description}" if rule.description else f"expected `{word}` matching regex '{rule.pattern}'"
    if isinstance(value, int | float):
        number = float if word == "float" else int
        limits = ((">=", rule.ge, lt), (">", rule.gt, le), ("<=", rule.le, gt), ("<", rule.lt, ge))
        return next(
            (f"expected `{word}` {sign} {number(at)}" for sign, at, out in limits if at is not None and out(value, at)), ""
        )
    if rule.min_length is not None and len(value) < rule.min_length:
        return f"expected `{word}` of length >= {rule.min_length}"
    if rule.max_length is not None and len(value) > rule.max_length:
        return f"expected `{word}` of length <= {rule.max_length}"
    return ""


def _alternatives(words: Iterable[Any]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else str(last)


def joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
