"""Tool calls are found in a stream however it is cut, and what is no call stays text."""

import itertools
import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.json_object import JsonObject
from gateway.api.tool_calls import Answer, CallArguments, CallStart, Event, HermesParser, TextDelta, assemble
from gateway.request import ToolCall
from tests.gateway.text.steady import STEADY


def new_parser() -> HermesParser:
    ids = itertools.count()
    return HermesParser(lambda: f"call_{next(ids)}")


def parse(pieces: Iterable[str]) -> list[Event]:
    parser = new_parser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


def joined(events: Sequence[Event]) -> list[Event]:
    """With neighbouring text deltas made one."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, TextDelta) and result and isinstance(result[-1], TextDelta):
            result[-1] = TextDelta(result[-1].text + event.text)
        else:
            result.append(event)
    return result


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


fragments = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<tool_", "<", "</", "{", "}", '"', "\\", "\n", " ", ":", ",", "[", "]", "true",
        "-1.5e3", '{"name": "f", "arguments": ', '{"name": "f"}', '"name"', '{"a": "</tool_call>"}', "\\u00e9", "nul", "01",
        "text", "é🙂", call("f"), call("g", '{"x": [1, {"y": null}], "z": "\\"<tool_call>\\n"}'),
    ]
)  # fmt: skip
outputs = st.lists(fragments | st.text(max_size=5), max_size=10).map("".join)


@st.composite
def cut_outputs(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(outputs)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


@settings(STEADY, max_examples=800)
@given(cut=cut_outputs())
def test_any_cutting_gives_what_the_whole_gives(cut: tuple[str, list[str]]) -> None:
    text, pieces = cut
    whole = joined(parse([text]))
    assert joined(parse(pieces)) == whole
    assert joined(parse(text)) == whole


@settings(STEADY, max_examples=500)
@given(text=outputs)
def test_text_without_a_call_comes_out_as_it_is(text: str) -> None:
    answer = assemble(parse([text]))
    if not answer.tool_calls:
        assert answer.content == text


def test_a_call_between_text() -> None:
    events = parse(["Let me look. " + call("look_up", '{"city":  "Paris"}') + "\n" + call("f") + "\nDone"])
    assert events == [
        TextDelta("Let me look. "),
        CallStart(0, "call_0", "look_up"),
        CallArguments(0, '{"city":  "Paris"}'),
        CallStart(1, "call_1", "f"),
        CallArguments(1, "{}"),
        TextDelta("\nDone"),
    ]
    assert assemble(events) == Answer(
        "Let me look. \nDone",
        (
            ToolCall(id="call_0", name="look_up", arguments='{"city":  "Paris"}'),
            ToolCall(id="call_1", name="f", arguments="{}"),
        ),
    )


def test_white_space_around_calls_is_theirs() -> None:
    text = '\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n\n'
    assert assemble(parse([text])) == Answer("", (ToolCall(id="call_0", name="f", arguments="{}"),))
    assert assemble(parse([" \n "])).content == " \n "


def test_the_closing_mark_inside_a_string_closes_nothing() -> None:
    arguments = json.dumps({"text": "</tool_call> and <tool_call>"})
    assert assemble(parse([call("f", arguments)])).tool_calls[0].arguments == arguments


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>hello</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "f", "arguments": {}}',
        '<tool_call>{"name": "f", "arguments": {}} x</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}</tool_cal',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}, "more": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "line\nbreak"}}</tool_call>',
        "<tool_call>" + '{"a":' * 5000,
    ],
)
def test_a_malformed_call_is_text(text: str) -> None:
    assert assemble(parse([text])) == Answer(text, ())
    assert assemble(parse(text)) == Answer(text, ())


def test_a_call_inside_what_was_none_is_found() -> None:
    answer = assemble(parse(["<tool_call><tool_call>oops " + call("f")]))
    assert answer == Answer("<tool_call><tool_call>oops ", (ToolCall(id="call_0", name="f", arguments="{}"),))


@pytest.mark.parametrize(
    ("pieces", "last"),
    [
        (["hello"], "hello"),
        (["a <"], "a "),
        (["a <", "b"], "<b"),
        (["a <tool", "box"], "<toolbox"),
        (["x<tool_call>", "h"], "<tool_call>h"),
        (["x<tool_call>{", '"name" "'], '<tool_call>{"name" "'),
        (["x<tool_call>{", '"a": tru', "x"], '<tool_call>{"a": trux'),
        (['x<tool_call>{"name": "f"}', "<"], ""),
        (['x<tool_call>{"name": "f"}', "</x"], '<tool_call>{"name": "f"}</x'),
    ],
)
def test_text_comes_out_as_soon_as_it_is_known_to_be_no_mark(pieces: list[str], last: str) -> None:
    parser = new_parser()
    for piece in pieces[:-1]:
        parser.feed(piece)
    assert "".join(event.text for event in parser.feed(pieces[-1]) if isinstance(event, TextDelta)) == last


def first_value(text: str) -> int | None:
    """Where the object that a text begins with ends, by the standard library."""
    start = len(text) - len(text.lstrip(" \t\n\r"))
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    return end if isinstance(value, dict) else None


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps({"": value}, ensure_ascii=False))


@settings(STEADY, max_examples=800)
@given(text=json_texts, at=st.integers(0, 200), cut=st.integers(0, 3), extra=st.sampled_from(["", " ", *'{}[]",:0e.-\\tu\n']))
def test_an_object_ends_where_the_standard_library_says(text: str, at: int, cut: int, extra: str) -> None:
    at %= len(text) + 1
    damaged = (text[:at] + extra + text[at + cut :]).replace("NaN", "").replace("Infinity", "")
    whole, by_character = JsonObject(), JsonObject()
    whole.feed(damaged)
    for character in damaged:
        by_character.feed(character)
    expected = first_value(damaged)
    assert (whole.end, whole.failed) == (by_character.end, by_character.failed)
    assert whole.end == expected
