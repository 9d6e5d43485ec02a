"""A grammar with a place from which no text completes it is refused; one whose empty parts cannot be entered is served."""

import json

import pytest
import torch

from backends.engine.request_limits import Refusal
from backends.engine.work import SampleRequest
from backends.runners.sampler import sample
from backends.structured_output.grammar import Grammars, MaskFiller, XgrammarMatcher
from backends.wire import CallForm, Grammar, Sampling
from tests.backends.structured_output.test_grammar import EOS, TOKENIZER, VOCABULARY, compiled, grammars

__all__ = ["grammars"]

ENDLESS = json.dumps(
    {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"], "additionalProperties": False}
)


@pytest.mark.parametrize(
    "pattern",
    [r"[^\s\S]", r"[^\w\W]+x", r"a[^\s\S]|b", r"(a[^\d\D])?b", r"ab{2}([^\x00-\U0010ffff]|c[^\d\D])", r"x|ya*[^\s\S]"],
)
def test_a_regex_with_a_dead_end_is_refused(grammars: Grammars, pattern: str) -> None:
    refused = compiled(grammars, Grammar(kind="regex", param="response_format", text=pattern))
    assert isinstance(refused, Refusal) and refused.code == "bad_grammar"
    assert "no text" in refused.message


@pytest.mark.parametrize("pattern", [r"[^\s\S]|b", r"x[^\d\D]*", r"(a[^\d\D]){0}b", "", r"(ab|c)*d{2,}"])
def test_a_regex_whose_empty_part_cannot_be_entered_is_served(grammars: Grammars, pattern: str) -> None:
    assert isinstance(compiled(grammars, Grammar(kind="regex", param="response_format", text=pattern)), XgrammarMatcher)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="schema", param="p", text=ENDLESS),
        Grammar(kind="schema", param="p", text=ENDLESS, thinks="opens"),
        Grammar(kind="calls", param="p", calls=(CallForm("<t>", ENDLESS, "</t>"),), trigger="<t>"),
        Grammar(kind="calls", param="p", calls=(CallForm("<t>", ENDLESS, "</t>"),), required=True),
    ],
)
def test_a_schema_that_asks_for_itself_without_end_is_refused(grammars: Grammars, grammar: Grammar) -> None:
    refused = compiled(grammars, grammar)
    assert isinstance(refused, Refusal) and refused.param == "p"


LOOP = {"type": "object", "properties": {"next": {"$ref": "#/$defs/loop"}}, "required": ["next"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("part", "good", "bad"),
    [
        ({"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]}, '{"a": null}', '{"a": {"next"'),
        ({"type": "array", "items": {"$ref": "#/$defs/loop"}}, '{"a": []}', '{"a": [{'),
        ({"$ref": "#/$defs/loop"}, "{}", '{"a": {'),
    ],
)
def test_an_option_without_an_end_is_never_begun(grammars: Grammars, part: object, good: str, bad: str) -> None:
    schema = {"$defs": {"loop": LOOP}, "type": "object", "properties": {"a": part}, "additionalProperties": False}
    text = json.dumps(schema)
    for forms in ({"kind": "schema", "text": text}, {"kind": "calls", "calls": (CallForm("", text, ""),), "required": True}):
        for said, is_taken in ((good, True), (bad, False)):
            at = compiled(grammars, Grammar(param="p", **forms))  # type: ignore[arg-type]
            assert isinstance(at, XgrammarMatcher)
            assert at._matcher.accept_string(said) is is_taken


def test_an_empty_mask_or_a_refused_token_ends_its_own_row_alone(grammars: Grammars) -> None:
    stuck, held = (compiled(grammars, Grammar(kind="regex", param="r", text="ab")) for _ in range(2))
    assert isinstance(stuck, XgrammarMatcher) and isinstance(held, XgrammarMatcher)
    stuck._matcher.fill_next_token_bitmask = lambda masks, row: masks[row].zero_()  # type: ignore[method-assign]
    logits = torch.zeros(2, VOCABULARY)
    for sampling in (Sampling(max_tokens=9), Sampling(max_tokens=9, temperature=1.0, top_p=0.5, top_k=4)):
        requests = [SampleRequest(sampling, 0, 1, (), matcher) for matcher in (stuck, held)]
        first, second = sample(logits, requests, MaskFiller().fill([stuck, held]))
        assert stuck.accept(first.token) == "error"
        assert TOKENIZER.decode([second.token])[0] in "ab"
    assert held.accept(EOS) == "error"
    assert held.accept(second.token) is None


def test_a_failure_of_the_library_ends_its_own_row_alone(grammars: Grammars) -> None:
    broken = compiled(grammars, Grammar(kind="json", param="r"))
    assert isinstance(broken, XgrammarMatcher)

    def fails(*_: object) -> None:
        raise RuntimeError("no")

    broken._matcher.fill_next_token_bitmask = fails  # type: ignore[method-assign]
    masks = MaskFiller().fill([broken])
    assert masks
    masks.apply(torch.zeros(1, VOCABULARY))
    assert broken.accept(broken.settle(7)) == "error"
