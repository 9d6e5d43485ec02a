"""Near its limit an answer in JSON is led to an end that satisfies its schema; far from it nothing is changed."""

import json
import random
from collections.abc import Generator
from typing import Any

import jsonschema
import pytest

from backends.structured_output.grammar import Grammars, MaskFiller, XgrammarMatcher
from backends.structured_output.length_limit import MAX_HELD_STEPS, STEP_WORK, Lexer, Pieces, closing_suffix
from backends.wire import FinishReason, Grammar
from benchmarks.schemas import schema_for
from tests.backends.structured_output.test_grammar import EOS, TOKENIZER, VOCABULARY, compiled, grammars

__all__ = ["grammars"]

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False}
NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "note": {"type": "string"},
            },
            "required": ["value", "children", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def settled_after(matcher: XgrammarMatcher, token: int) -> int:
    """What is taken for a token in the end, after the steps in which the sequence stays where it is."""
    for _ in range(MAX_HELD_STEPS):
        if (settled := matcher.settle(token)) is not None:
            return settled
    raise AssertionError("the sequence is held for ever")


def babbled(matcher: XgrammarMatcher, limit: int, rng: random.Random) -> tuple[FinishReason | None, str, int]:
    """How an answer ends that takes any token that its masks allow, but the one that ends it, where there is another."""
    matcher.limit(limit)
    filler, tokens = MaskFiller(), list[int]()
    while len(tokens) < limit:
        masks = filler.fill([matcher])
        assert masks
        masks.filled.result()
        words = masks.bits[0].tolist()
        allowed = [token for token in range(VOCABULARY) if words[token // 32] >> (token % 32) & 1]
        longer = [token for token in allowed if token != EOS]
        settled = settled_after(matcher, rng.choice(longer or allowed))
        assert settled in allowed
        tokens.append(settled)
        if (reason := matcher.accept(settled)) is not None:
            return reason, TOKENIZER.decode(tokens), len(tokens)
    return None, TOKENIZER.decode(tokens), len(tokens)


def schema_matcher(grammars: Grammars, schema: Any, **more: Any) -> XgrammarMatcher:
    matcher = compiled(grammars, Grammar(kind="schema", param="schema", text=json.dumps(schema), **more))
    assert isinstance(matcher, XgrammarMatcher)
    return matcher


@pytest.mark.parametrize("seed", range(40))
def test_any_answer_ends_valid_within_its_limit(grammars: Grammars, seed: int) -> None:
    schema = schema_for(seed)
    reason, text, _ = babbled(schema_matcher(grammars, schema), 400, random.Random(seed))
    assert reason is not None
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


@pytest.mark.parametrize("limit", [40, 100, 300])
@pytest.mark.parametrize("seed", range(5))
def test_unbounded_nesting_ends_valid_within_its_limit(grammars: Grammars, limit: int, seed: int) -> None:
    reason, text, _ = babbled(schema_matcher(grammars, NODE), limit, random.Random(seed))
    assert reason == "length"
    jsonschema.validate(json.loads(text), NODE)


def test_shortened_answer_has_finish_reason_stop_only_with_fit(grammars: Grammars) -> None:
    for fit, told in ((False, "length"), (True, "stop")):
        reason, text, count = babbled(schema_matcher(grammars, TEXT, fit=fit), 50, random.Random(1))
        assert reason == told and json.loads(text).keys() == {"text"} and 40 <= count <= 50


def test_json_mode_ends_valid_also_after_reasoning(grammars: Grammars) -> None:
    for thinks in ("no", "inside"):
        matcher = compiled(grammars, Grammar(kind="json", param="response_format", thinks=thinks))  # type: ignore[arg-type]
        assert isinstance(matcher, XgrammarMatcher)
        reason, text, _ = babbled(matcher, 60, random.Random(2))
        assert reason is not None
        assert isinstance(json.loads(text.rpartition("</think>")[2]), dict)


def test_answer_is_unchanged_where_no_end_fits(grammars: Grammars) -> None:
    matcher = schema_matcher(grammars, NODE)
    reason, _, count = babbled(matcher, 6, random.Random(3))
    assert reason is None and count == 6


def test_answer_that_ends_in_time_is_unchanged(grammars: Grammars) -> None:
    text = '{"text": "a \\"quoted\\" {brace}"}'
    matcher = schema_matcher(grammars, TEXT)
    matcher.limit(80)
    reason = None
    for token in [*TOKENIZER.encode(text, add_special_tokens=False).ids, EOS]:
        assert settled_after(matcher, token) == token
        reason = matcher.accept(token)
    assert reason == "stop"


def test_calls_are_never_shortened(grammars: Grammars) -> None:
    from tests.backends.structured_output.test_grammar import WEATHER

    matcher = compiled(grammars, Grammar(kind="calls", param="tools", calls=(WEATHER,), required=True))
    assert isinstance(matcher, XgrammarMatcher)
    assert babbled(matcher, 60, random.Random(4))[0] is None


def whole(search: Generator[int, None, Any]) -> tuple[Any, int]:
    """What a search returns, and the most work that it does at once."""
    most = 0
    while True:
        try:
            most = max(most, next(search))
        except StopIteration as end:
            return end.value, most


def test_pieces_are_the_longest_that_fit() -> None:
    pieces = Pieces([b"", b"a", b"ab", b"b", b"abb"])
    assert whole(pieces.tokens(b"abab"))[0] == [2, 2]
    assert whole(pieces.tokens(b"abb"))[0] == [4] and whole(pieces.tokens(b"abc"))[0] is None


def essay(least: int, most: int) -> dict[str, Any]:
    text = {"type": "string", "minLength": least, "maxLength": most}
    return {"type": "object", "properties": {"essay": text}, "required": ["essay"], "additionalProperties": False}


@pytest.mark.parametrize("seed", range(3))
def test_long_texts_are_led_to_their_end_with_bounded_work_in_each_step(grammars: Grammars, seed: int) -> None:
    matcher = schema_matcher(grammars, essay(900, 1800))
    reason, text, _ = babbled(matcher, 1000, random.Random(seed))
    assert reason is not None
    jsonschema.validate(json.loads(text), essay(900, 1800))


@pytest.mark.parametrize("schema", [essay(100_000, 200_000), {"type": "array", "items": {"const": "xy" * 90}, "minItems": 10}])
def test_no_part_of_a_search_does_more_than_the_work_of_a_step(grammars: Grammars, schema: dict[str, Any]) -> None:
    matcher = schema_matcher(grammars, schema)
    found, most = whole(closing_suffix(matcher._matcher.fork(), Lexer(thinks=False), max_bytes=10**6, can_jump=False))
    jsonschema.validate(json.loads(found), schema)
    assert most <= STEP_WORK


def test_an_answer_whose_shortest_text_cannot_fit_is_not_searched(grammars: Grammars) -> None:
    matcher = schema_matcher(grammars, essay(1_000_000, 2_000_000))
    matcher.limit(3000)
    assert matcher._length_limiter is None
    assert matcher._lengths.answer == 1_000_000 + len('{"essay": ""}')
