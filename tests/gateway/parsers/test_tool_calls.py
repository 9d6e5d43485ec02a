"""Tool calls are found in a stream however it is cut, and what is no call stays text."""

import itertools
import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.parsers.events import Answer, CallArguments, Calls, CallStart, Event, Parser, ReasoningDelta, TextDelta, assemble
from gateway.parsers.json_object import JsonObject
from gateway.parsers.output_format import OutputFormat
from gateway.parsers.qwen_coder import cast
from gateway.request import Tool, ToolCall
from tests.gateway.text.volatile_text import STEADY

TOOLS = (
    Tool(name="f"),
    Tool(
        name="g",
        parameters={
            "type": "object",
            "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array"}},
        },
    ),
)
HERMES = OutputFormat()
FAMILIES = [
    HERMES,
    OutputFormat(calls="qwen_coder"),
    OutputFormat(calls="llama_json"),
    OutputFormat(calls="mistral"),
    OutputFormat(thinks="opens"),
    OutputFormat(thinks="inside", calls="qwen_coder"),
]


def new_parser(output_format: OutputFormat = HERMES) -> Parser:
    ids = itertools.count()
    return output_format.parser(Calls(lambda: f"call_{next(ids)}"), TOOLS)


def parse(pieces: Iterable[str], output_format: OutputFormat = HERMES) -> list[Event]:
    parser = new_parser(output_format)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


def joined(events: Sequence[Event]) -> list[Event]:
    """With neighbouring deltas of one kind made one."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        match event, last:
            case TextDelta(text), TextDelta(before):
                result[-1] = TextDelta(before + text)
            case ReasoningDelta(text), ReasoningDelta(before):
                result[-1] = ReasoningDelta(before + text)
            case CallArguments(index, text), CallArguments(same, before) if index == same:
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(event)
    return result


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


fragments = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<tool_", "<", "</", "{", "}", '"', "\\", "\n", " ", ":", ",", "[", "]", "true",
        "-1.5e3", '{"name": "f", "arguments": ', '{"name": "f"}', '"name"', '{"a": "</tool_call>"}', "\\u00e9", "nul", "01",
        "text", "é🙂", "[TOOL_CALLS]", "[ARGS]", ";", "<|python_tag|>", "<function=g>", "<parameter=n>", "</parameter>",
        "</function>", "<think>", "</think>", "[TOOL_CALLS][", '{"name": "g", "parameters": {"n": 1}}', "g[ARGS]{}",
        "<tool_call>\n<function=g>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>",
        call("f"), call("g", '{"x": [1, {"y": null}], "z": "\\"<tool_call>\\n"}'),
    ]
)  # fmt: skip
outputs = st.lists(fragments | st.text(max_size=5), max_size=10).map("".join)


@st.composite
def cut_outputs(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(outputs)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


@settings(STEADY, max_examples=800)
@given(cut=cut_outputs(), output_format=st.sampled_from(FAMILIES))
def test_any_chunking_gives_the_events_of_the_whole_text(cut: tuple[str, list[str]], output_format: OutputFormat) -> None:
    text, pieces = cut
    whole = joined(parse([text], output_format))
    assert joined(parse(pieces, output_format)) == whole
    assert joined(parse(text, output_format)) == whole


@settings(STEADY, max_examples=500)
@given(text=outputs, output_format=st.sampled_from(FAMILIES[:4]))
def test_text_without_a_call_is_unchanged(text: str, output_format: OutputFormat) -> None:
    answer = assemble(parse([text], output_format))
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


def test_white_space_around_calls_is_dropped() -> None:
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
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"more": 1, "name": "f", "arguments": {}}</tool_call>',
        "<tool_call>" + '{"a":' * 5000,
    ],
)
def test_mark_that_never_becomes_a_call_is_text(text: str) -> None:
    assert assemble(parse([text])) == Answer(text, ())
    assert assemble(parse(text)) == Answer(text, ())


@pytest.mark.parametrize(
    ("text", "arguments", "content"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": "b', '{"a": "b', ""),
        ('<tool_call>{"name": "f", "arguments": {}', "{}", ""),
        ('<tool_call>{"name": "f", "arguments": {}} x', "{}", " x"),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_cal', "{}", "</tool_cal"),
        ('<tool_call>{"name": "f", "arguments": {}, "more": 1}</tool_call>', "{}", ""),
        ('<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>', '{"a": 01}}', ""),
        ('<tool_call>{"name": "f", "arguments": {} x</tool_call>y', "{}", "y"),
        ('<tool_call>{"name": "f", "arguments": {"a": nul}}</tool_ca', '{"a": nul}}</tool_ca', ""),
    ],
)
def test_call_that_has_begun_stays_a_call(text: str, arguments: str, content: str) -> None:
    expected = Answer(content, (ToolCall(id="call_0", name="f", arguments=arguments),))
    assert assemble(parse([text])) == expected
    assert assemble(parse(text)) == expected


def test_arguments_stream_while_they_are_generated() -> None:
    parser = new_parser()
    assert parser.feed('<tool_call>{"name": "f", ') == []
    assert parser.feed('"arguments": {"text": "a') == [CallStart(0, "call_0", "f"), CallArguments(0, '{"text": "a')]
    assert parser.feed("bc") == [CallArguments(0, "bc")]
    assert parser.feed('"}}') == [CallArguments(0, '"}')]
    assert parser.feed("</tool_call>") == [] == parser.close()


LLAMA_CALL = '{"name": "g", "parameters": {"n": 1}}'
CODER_CALL = """<tool_call>
<function=g>
<parameter=n>
5
</parameter>
<parameter=s>
5
</parameter>
<parameter=l>
[1, "é"]
</parameter>
</function>
</tool_call>"""


@pytest.mark.parametrize(
    ("output_format", "text", "content", "calls"),
    [
        (OutputFormat(calls="llama_json"), LLAMA_CALL, "", [("g", '{"n": 1}')]),
        (OutputFormat(calls="llama_json"), f"{LLAMA_CALL}; {LLAMA_CALL}", "", [("g", '{"n": 1}')] * 2),
        (OutputFormat(calls="llama_json"), f"<|python_tag|>{LLAMA_CALL}", "", [("g", '{"n": 1}')]),
        (OutputFormat(calls="llama_json"), f"It is {LLAMA_CALL}", f"It is {LLAMA_CALL}", []),
        (OutputFormat(calls="mistral"), '[TOOL_CALLS][{"name": "g", "arguments": {"n": 1}}]', "", [("g", '{"n": 1}')]),
        (
            OutputFormat(calls="mistral"),
            'Hm. [TOOL_CALLS]g[ARGS]{"n": 1}[TOOL_CALLS]f{}',
            "Hm. ",
            [("g", '{"n": 1}'), ("f", "{}")],
        ),
        (OutputFormat(calls="mistral"), "[TOOL_CALLS]g[CALL_ID]123[ARGS]{}", "", [("g", "{}")]),
        (OutputFormat(calls="qwen_coder"), "So:\n" + CODER_CALL, "So:\n", [("g", '{"n": 5, "s": "5", "l": [1, "é"]}')]),
        (OutputFormat(calls="qwen_coder"), "<tool_call>\n<function=f>\n</function>\n</tool_call>", "", [("f", "{}")]),
    ],
)
def test_every_family_parses_its_call_format(
    output_format: OutputFormat, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    answer = assemble(parse(text, output_format))
    assert (answer.content, [(one.name, one.arguments) for one in answer.tool_calls]) == (content, calls)


@pytest.mark.parametrize(
    ("output_format", "text", "answer"),
    [
        (OutputFormat(thinks="opens"), "<think>\nhm\n</think>\n\nyes", Answer("yes", (), "hm")),
        (OutputFormat(thinks="opens"), "yes <think>", Answer("yes <think>", ())),
        (OutputFormat(thinks="inside"), "hm</think>yes", Answer("yes", (), "hm")),
        (OutputFormat(thinks="inside"), "hm", Answer("", (), "hm")),
        (OutputFormat(thinks="no"), "<think>hm</think>", Answer("<think>hm</think>", ())),
    ],
)
def test_reasoning_is_kept_apart(output_format: OutputFormat, text: str, answer: Answer) -> None:
    assert assemble(parse(text, output_format)) == answer == assemble(parse([text], output_format))


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("5", {"type": "integer"}, "5"),
        ("5", {"type": "string"}, '"5"'),
        ("5.5", {"type": "integer"}, '"5.5"'),
        ("True", {"type": "boolean"}, "true"),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "null"),
        ('{"a": 1}', {"type": "object"}, '{"a": 1}'),
        ("x", None, '"x"'),
    ],
)
def test_values_are_cast_to_the_types_of_the_schema(value: str, schema: object, expected: str) -> None:
    assert cast(value, schema) == expected


def test_call_after_a_false_start_is_found() -> None:
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
        (["x<tool_call>{", '"a": tru', "x"], "x"),
        (['x<tool_call>{"name": "f"}', "<"], ""),
        (['x<tool_call>{"name": "f"}', "</x"], "</x"),
    ],
)
def test_text_is_released_once_it_cannot_be_a_mark(pieces: list[str], last: str) -> None:
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
def test_end_of_a_json_object_equals_the_standard_librarys(text: str, at: int, cut: int, extra: str) -> None:
    at %= len(text) + 1
    damaged = (text[:at] + extra + text[at + cut :]).replace("NaN", "").replace("Infinity", "")
    whole, by_character = JsonObject(), JsonObject()
    whole.feed(damaged)
    for character in damaged:
        by_character.feed(character)
    expected = first_value(damaged)
    assert (whole.end, whole.failed) == (by_character.end, by_character.failed)
    assert whole.end == expected
