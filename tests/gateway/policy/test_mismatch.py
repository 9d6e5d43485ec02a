"""Whatever msgspec refuses is named by ourselves, with its place, and what it takes is not."""

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from gateway.policy.mismatch import Mismatch, find_mismatch, wrong


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: Annotated[str, Meta(min_length=1, max_length=3)]


class Count(msgspec.Struct, frozen=True, tag_field="type", tag="count"):
    count: Annotated[int, Meta(ge=1, le=3)]
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: Annotated[tuple[Text | Count, ...], Meta(max_length=3)] | str | None
    mode: Literal["on", "off"] = "on"
    names: dict[Annotated[str, Meta(pattern="^[a-z]$")], float] | None = None
    one: Count | None = None
    anything: Any = None
    exact: bool = False


WORDED = [
    ("[]", "", "expected `object`, got `array`"),
    ('{"parts": 5}', "parts", "expected `array | str | null`, got `int`"),
    ('{"parts": [{"type": "text", "text": "long"}]}', "parts[0].text", "expected `str` of length <= 3"),
    ('{"parts": [{"type": "text", "text": ""}]}', "parts[0].text", "expected `str` of length >= 1"),
    ('{"parts": [{"type": "image"}]}', "parts[0].type", "unknown 'image': use text or count"),
    ('{"parts": [{"type": "count", "count": 0}]}', "parts[0].count", "expected `int` >= 1"),
    ('{"parts": [{"type": "count", "count": 1, "share": 1}]}', "parts[0].share", "expected `float` < 1.0"),
    ('{"parts": [{"type": "count", "count": 1.5}]}', "parts[0].count", "expected `int`, got `float`"),
    ('{"parts": ["", "", "", ""]}', "parts", "expected `array` of length <= 3"),
    ('{"parts": "", "mode": "half"}', "mode", "must be one of on or off"),
    ('{"parts": "", "names": {"A": 1}}', "names", "a name in it: expected `str` matching regex '^[a-z]$'"),
    ('{"parts": "", "names": {"a": "1"}}', "names[...]", "expected `float`, got `str`"),
    ('{"parts": "", "names": {"a": 1e999}}', "names[...]", "the number is out of range"),
    ('{"parts": "", "exact": null}', "exact", "expected `bool`, got `null`"),
]


@pytest.mark.parametrize(("text", "path", "problem"), WORDED)
def test_a_value_that_does_not_fit_is_worded(text: str, path: str, problem: str) -> None:
    found = find_mismatch(text.encode(), Whole)
    assert found is not None
    assert (found.path, found.problem) == (path, problem)


def test_fields_that_are_missing_or_unknown_are_named() -> None:
    assert find_mismatch(b"{}", Whole) == Mismatch("", missing="parts")
    assert find_mismatch(b'{"parts": [{"text": "a"}]}', Whole) == Mismatch("parts[0]", missing="type")
    assert find_mismatch(b'{"parts": [{"type": "count"}]}', Whole, "input[3]") == Mismatch("input[3].parts[0]", missing="count")
    assert find_mismatch(b'{"parts": "", "part": 1}', Whole) == Mismatch("", unknown="part")


@pytest.mark.parametrize("last", ['""', "[]", '[{"type": "count", "count": 1}]'])
def test_a_field_given_twice_is_refused_though_the_last_would_fit(last: str) -> None:
    assert find_mismatch(f'{{"parts": 5, "parts": {last}}}'.encode(), Whole) is not None


def test_a_very_long_array_is_not_searched() -> None:
    parts = b", ".join([b'"x"'] * 20_001)
    assert find_mismatch(b"[" + parts + b"]", tuple[int, ...]) == Mismatch("", "one of its 20,001 values does not fit")


def test_a_plain_value_of_a_type_that_json_lacks_is_worded() -> None:
    assert wrong({1}, str | None) == "expected `str | null`, got `set`"
    assert wrong(b"", Literal["a"]) == "expected `str`, got `bytes`"


words = st.sampled_from(["text", "count", "type", "on", "a", "", "parts", "share"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
parts = st.fixed_dictionaries({"type": words}, optional={"text": json_values, "count": json_values, "share": json_values})
wholes = st.fixed_dictionaries(
    {"parts": st.lists(parts | json_values, max_size=4) | json_values},
    optional={"mode": json_values, "names": json_values, "one": parts | json_values, "exact": json_values, "part": json_values},
)


@settings(max_examples=500, deadline=None, database=None)
@given(value=wholes | json_values)
def test_mismatch_names_a_problem_exactly_where_msgspec_refuses(value: Any) -> None:
    text = msgspec.json.encode(value)
    found = find_mismatch(text, Whole)
    try:
        msgspec.json.decode(text, type=Whole)
    except msgspec.ValidationError:
        assert found is not None
        assert (found.missing, found.unknown) != (None, None) or found.problem not in ("", "the value does not fit")
    else:
        assert found is None
