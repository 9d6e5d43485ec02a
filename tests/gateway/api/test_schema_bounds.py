"""A schema whose grammar would be large is refused before it is compiled, with the bound and the way out."""

from typing import Any

import pytest

from gateway.api.json_schema import MAX_OPTIONAL, MAX_PROPERTIES, check_schema
from gateway.errors import UnsupportedParameter


def record(num: int, *, num_required: int = 0, kind: Any = None) -> dict[str, Any]:
    names = [f"property_{number}" for number in range(num)]
    properties = {name: kind or {"type": "integer"} for name in names}
    return {"type": "object", "properties": properties, "required": names[:num_required], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        record(2_500),
        record(MAX_OPTIONAL + 1),
        record(80, num_required=40, kind=record(20)),
        record(MAX_PROPERTIES + 1, num_required=MAX_PROPERTIES + 1),
        record(11, num_required=11, kind=record(100, num_required=100)),
        {"anyOf": [{"const": number} for number in range(MAX_PROPERTIES + 1)]},
        {"$defs": {"wide": record(2_500)}, "type": "array", "items": {"$ref": "#/$defs/wide"}},
    ],
)
def test_wide_schema_is_refused_with_its_bound(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter, match=r"over 1(00|,000)"):
        check_schema(schema, param="response_format")


@pytest.mark.parametrize(
    "schema",
    [
        record(MAX_OPTIONAL),
        record(MAX_PROPERTIES, num_required=MAX_PROPERTIES - 50),
        record(9, num_required=9, kind=record(30)),
    ],
)
def test_schema_within_its_bounds_is_taken(schema: dict[str, Any]) -> None:
    assert check_schema(schema, param="response_format") > 0
