"""The configuration reference, docs/config.md: every policy key and every environment variable, from the types in the code."""

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types

from gateway.policy import schema
from gateway.policy.schema import Policy
from gateway.settings import TABLE, Settings

HEAD = """\
# Configuration

`headway policy reference > docs/config.md` generates this page; a test holds it current. `headway policy check FILE` names
every problem of a file. `headway policy schema` prints the JSON Schema for an editor. Worked examples are in `policies/`. The
flags of a worker are in [engine.md](engine.md#worker-flags).

A policy is a YAML file. `${NAME}` in a value takes it from the environment. Unknown keys are errors.
"""
SETTINGS_HEAD = """\
## Environment variables

The gateway reads these variables once, at start. An empty variable counts as absent. A later row of the same setting takes
precedence over an earlier one.
"""


@cache
def field_docs() -> dict[str, dict[str, str]]:
    """The attribute docstrings of the policy types, by class and field, as one line each."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if isinstance(node, ast.ClassDef):
            docs[node.name] = dict(_attribute_docs(node))
    return docs


def _attribute_docs(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in zip(node.body, node.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def config_page() -> str:
    """docs/config.md."""
    return "\n".join([HEAD, *_policy_sections(), SETTINGS_HEAD, *_settings_table()])


def _policy_sections() -> Iterator[str]:
    """A table for each type, in the order in which the policy mentions them."""
    pending: list[type] = [Policy]
    seen: set[type] = set()
    while pending:
        cls = pending.pop(0)
        if cls in seen:
            continue
        seen.add(cls)
        info = types.type_info(cls)
        assert isinstance(info, types.StructType)
        yield f"## {_title(cls)}\n\n{' '.join((cls.__doc__ or '').split())}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for field in info.fields:
            cells = (f"`{field.name}`", _type_name(field.type), _default(field), field_docs()[cls.__name__][field.name])
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
            pending += _structs_in(field.type)
        yield ""


def _title(cls: type) -> str:
    return f"{cls.__name__}: the whole file" if cls is Policy else cls.__name__


def _structs_in(type_: types.Type) -> list[type]:
    match type_:
        case types.StructType():
            return [type_.cls]
        case types.Metadata():
            return _structs_in(type_.type)
        case types.VarTupleType():
            return _structs_in(type_.item_type)
        case types.DictType():
            return _structs_in(type_.value_type)
        case types.UnionType():
            return [cls for part in type_.types for cls in _structs_in(part)]
    return []


def _type_name(type_: types.Type) -> str:
    match type_:
        case types.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case types.Metadata():
            return _type_name(type_.type)
        case types.LiteralType():
            return " or ".join(f"`{value}`" for value in type_.values)
        case types.VarTupleType():
            return f"list of {_type_name(type_.item_type)}"
        case types.DictType():
            return f"map to {_type_name(type_.value_type)}"
        case types.UnionType():
            return " or ".join(_type_name(part) for part in type_.types)
        case types.IntType():
            return f"integer{_bounds(type_)}"
        case types.FloatType():
            return f"number{_bounds(type_)}"
        case types.BoolType():
            return "boolean"
        case types.NoneType():
            return "null"
    assert isinstance(type_, types.StrType)
    return "text"


def _bounds(type_: types.IntType | types.FloatType) -> str:
    if type_.le is not None:
        return f" {type_.ge:g} to {type_.le:g}"
    return f" >= {type_.ge:g}" if type_.ge is not None else f" > {type_.gt:g}" if type_.gt is not None else ""


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    plain = msgspec.to_builtins(value)
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    if isinstance(plain, dict):
        plain = {name: _given(part) for name, part in plain.items()}
    return f"`{json.dumps(plain)}`"


def _given(part: Any) -> Any:
    return {key: value for key, value in part.items() if value} if isinstance(part, dict) else part


def _settings_table() -> Iterator[str]:
    defaults = Settings()
    yield "| variable | setting | default | value |\n|---|---|---|---|"
    for variable, (name, _, meaning) in TABLE.items():
        yield f"| `{variable}` | `{name}` | `{json.dumps(getattr(defaults, name))}` | {meaning} |"
    yield ""
