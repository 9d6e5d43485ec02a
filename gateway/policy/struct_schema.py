"""JSON Schema (2020-12) of our structs. It is built here, since msgspec's own schema differs between its versions.

Only the types used in our structs are supported; any other is an error.
"""

import re
from collections.abc import Iterable, Mapping
from inspect import cleandoc
from typing import Any

import msgspec
from msgspec import inspect

Data = dict[str, Any]
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def components(kinds: Iterable[type[msgspec.Struct]], ref_template: str) -> dict[str, Data]:
    """Return the schemas of these structs and all structs inside them, by name. Structs of equal names get their full path."""
    found: dict[type, inspect.StructType] = {}
    for kind in kinds:
        _collect(inspect.type_info(kind), found)
    short_names = [cls.__name__ for cls in found]
    names = {cls: _path(cls) if short_names.count(cls.__name__) > 1 else cls.__name__ for cls in found}
    writer = _Writer({cls: ref_template.format(name=name) for cls, name in names.items()})
    return {names[cls]: writer.struct(info) for cls, info in found.items()}


def _path(cls: type) -> str:
    return re.sub(r"[^a-zA-Z0-9.\-_]", "_", f"{cls.__module__}.{cls.__qualname__}")


def _collect(info: inspect.Type, found: dict[type, inspect.StructType]) -> None:
    match info:
        case inspect.StructType() if info.cls not in found:
            found[info.cls] = info
            for field in info.fields:
                _collect(field.type, found)
        case inspect.Metadata():
            _collect(info.type, found)
        case inspect.CollectionType():
            _collect(info.item_type, found)
        case inspect.DictType():
            _collect(info.value_type, found)
        case inspect.UnionType():
            for member in info.types:
                _collect(member, found)


class _Writer:
    def __init__(self, refs: Mapping[type, str]) -> None:
        self._refs = refs

    def struct(self, info: inspect.StructType) -> Data:
        properties: dict[str, Data] = {info.tag_field: {"enum": [info.tag]}} if info.tag_field else {}
        required = list(properties)
        for field in info.fields:
            schema = self._schema(field.type)
            if field.required:
                required.append(field.encode_name)
            elif field.default is not msgspec.NODEFAULT:
                schema["default"] = msgspec.json.decode(msgspec.json.encode(field.default))
            elif field.default_factory in (list, dict):
                schema["default"] = field.default_factory()
            properties[field.encode_name] = schema
        written: Data = {"title": info.cls.__name__}
        if info.cls.__doc__:
            written["description"] = cleandoc(info.cls.__doc__)
        written |= {"type": "object", "properties": properties, "required": required}
        return written | ({"additionalProperties": False} if info.forbid_unknown_fields else {})

    def _schema(self, info: inspect.Type) -> Data:
        match info:
            case inspect.Metadata():
                return {**self._schema(info.type), **(info.extra_json_schema or {})}
            case inspect.StructType():
                return {"$ref": self._refs[info.cls]}
            case inspect.UnionType():
                return self._union(info)
            case inspect.DictType():
                return self._dict(info)
            case inspect.CollectionType():
                items = {} if isinstance(info.item_type, inspect.AnyType) else {"items": self._schema(info.item_type)}
                return {"type": "array", **items, **_lengths(info, "Items")}
            case inspect.LiteralType():
                return {"enum": sorted(info.values)}
            case inspect.StrType():
                pattern = {} if info.pattern is None else {"pattern": info.pattern}
                return {"type": "string", **_lengths(info, "Length"), **pattern}
            case inspect.IntType() | inspect.FloatType():
                kind = "integer" if isinstance(info, inspect.IntType) else "number"
                values = ((word, getattr(info, name)) for name, word in _BOUNDS.items())
                return {"type": kind, **{word: value for word, value in values if value is not None}}
            case inspect.BoolType():
                return {"type": "boolean"}
            case inspect.NoneType():
                return {"type": "null"}
            case inspect.AnyType():
                return {}
        raise TypeError(f"{info!r} has no JSON Schema here")

    def _dict(self, info: inspect.DictType) -> Data:
        names = {key: value for key, value in self._schema(info.key_type).items() if key != "type"}
        values = {} if isinstance(info.value_type, inspect.AnyType) else {"additionalProperties": self._schema(info.value_type)}
        return {"type": "object", **({"propertyNames": names} if names else {}), **values, **_lengths(info, "Properties")}

    def _union(self, info: inspect.UnionType) -> Data:
        """Return a union: plain types first, then structs, null last. Tagged structs get OpenAPI's discriminator."""
        structs = [member for member in info.types if isinstance(member, inspect.StructType)]
        null = [member for member in info.types if isinstance(member, inspect.NoneType)]
        plain = [self._schema(member) for member in info.types if member not in structs and member not in null]
        tagged = [self._schema(struct) for struct in structs]
        if len(structs) > 1:
            mapping = {str(struct.tag): self._refs[struct.cls] for struct in structs}
            tagged = [{"anyOf": tagged, "discriminator": {"propertyName": structs[0].tag_field, "mapping": mapping}}]
            if not plain and not null:
                return tagged[0]
        return {"anyOf": [*plain, *tagged, *({"type": "null"} for _ in null)]}


def _lengths(info: Any, of: str) -> Data:
    lengths = {f"min{of}": info.min_length, f"max{of}": info.max_length}
    return {word: value for word, value in lengths.items() if value is not None}
