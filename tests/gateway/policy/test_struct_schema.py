"""The JSON Schema that we write says of a value what msgspec says of it, whatever msgspec's version."""

import datetime
from typing import Annotated, Any, Literal

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from msgspec import UNSET, Meta, UnsetType

from gateway.policy.struct_schema import components
from tests.gateway.policy.test_mismatch import Whole, json_values, wholes


class Kinds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that our structs are made of.

    A second paragraph.
    """

    name: Annotated[str, Meta(pattern="^a", description="begins with a")]
    count: Annotated[int, Meta(ge=1)] | None = None
    share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    words: tuple[str, ...] = ("x",)
    level: Literal["low", "high"] | UnsetType = UNSET
    by_level: dict[Literal["low", "high"], int] = {}
    other: Whole | None = None
    anything: Any = None


def test_the_schema_of_every_kind() -> None:
    written = components([Kinds], ref_template="#/$defs/{name}")
    assert list(written) == ["Kinds", "Whole", "Text", "Count"]
    assert written["Kinds"] == {
        "title": "Kinds",
        "description": "All that our structs are made of.\n\nA second paragraph.",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^a", "description": "begins with a"},
            "count": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None},
            "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5},
            "words": {"type": "array", "items": {"type": "string"}, "default": ["x"]},
            "level": {"enum": ["high", "low"]},
            "by_level": {
                "type": "object",
                "propertyNames": {"enum": ["high", "low"]},
                "additionalProperties": {"type": "integer"},
                "default": {},
            },
            "other": {"anyOf": [{"$ref": "#/$defs/Whole"}, {"type": "null"}], "default": None},
            "anything": {"default": None},
        },
        "required": ["name"],
        "additionalProperties": False,
    }


def test_a_type_that_is_not_known_is_an_error() -> None:
    day = msgspec.defstruct("Day", [("at", datetime.date)])
    with pytest.raises(TypeError):
        components([day], ref_template="{name}")


def test_two_structs_of_one_name_have_their_paths() -> None:
    structs = [msgspec.defstruct("Same", [("x", int)], module=module) for module in ("a.b", "c")]
    assert list(components(structs, ref_template="{name}")) == ["a.b.Same", "c.Same"]


VALIDATOR = jsonschema.Draft202012Validator(
    {"$ref": "#/$defs/Whole", "$defs": components([Whole], ref_template="#/$defs/{name}")}
)


@settings(max_examples=300, deadline=None, database=None)
@given(value=wholes | json_values)
def test_schema_accepts_exactly_the_values_that_msgspec_accepts(value: Any) -> None:
    try:
        msgspec.json.decode(msgspec.json.encode(value), type=Whole)
    except msgspec.ValidationError:
        assert not VALIDATOR.is_valid(value)
    else:
        assert VALIDATOR.is_valid(value)
