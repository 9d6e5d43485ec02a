"""Grammars let through what they describe and nothing else; one that cannot be had is refused with its parameter's name."""

import threading
from pathlib import Path

import pytest
import torch

from backends.engine.request_limits import Refusal
from backends.engine.work import SampleRequest
from backends.runners.sampler import sample
from backends.structured_output.grammar import Grammars, MaskFiller, XgrammarMatcher
from backends.wire import CallForm, Grammar, Sampling
from backends.worker.startup import read_tokenizer

NANO = Path(__file__).parents[3] / "backends" / "zoo" / "nano"
TOKENIZER = read_tokenizer(NANO)
VOCABULARY = TOKENIZER.get_vocab_size()
EOS = 2
CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false}'
WEATHER = CallForm('<tool_call>{"name": "weather", "arguments": ', CITY, "}</tool_call>")
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, vocab_size=VOCABULARY, eos_tokens=[EOS])


def compiled(grammars: Grammars, grammar: Grammar) -> XgrammarMatcher | Refusal:
    outcomes: list[XgrammarMatcher | Refusal] = []
    done = threading.Event()
    grammars.compile(grammar, lambda outcome: (outcomes.append(outcome), done.set())[0])
    assert done.wait(30)
    return outcomes[0]


def takes(grammars: Grammars, grammar: Grammar, text: str) -> bool:
    """Whether the masks let a model write this text and end, token by token."""
    matcher = compiled(grammars, grammar)
    assert isinstance(matcher, XgrammarMatcher)
    filler = MaskFiller()
    for token in [*TOKENIZER.encode(text, add_special_tokens=False).ids, EOS]:
        masks = filler.fill([matcher])
        assert masks
        if masks.apply(torch.zeros(1, VOCABULARY))[0, token] < 0:
            return False
        over = matcher.accept(token)
    return over


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Grammar(kind="json", param="response_format"), '{"a": [1, "é"]}', "[1]"),
        (Grammar(kind="schema", param="response_format", text=CITY), '{"city": "Rome"}', '{"town": "Rome"}'),
        (Grammar(kind="regex", param="regex", text="[a-c]{2}"), "ab", "abc"),
        (
            Grammar(kind="calls", param="tools", calls=(WEATHER,), trigger="<tool_call>"),
            "So. " + CALL,
            CALL.replace("city", "c"),
        ),
        (Grammar(kind="calls", param="tool_choice", calls=(WEATHER,), required=True), CALL + CALL, "So. " + CALL),
        (Grammar(kind="calls", param="tool_choice", calls=(WEATHER,), required=True, parallel=False), CALL, CALL + CALL),
        (Grammar(kind="regex", param="regex", text="yes|no", thinks="opens"), "<think>hm</think>yes", "hm</think>yes"),
        (Grammar(kind="regex", param="regex", text="yes|no", thinks="inside"), "hm</think>\n\nyes", "yes"),
    ],
)
def test_masks_allow_exactly_the_grammar(grammars: Grammars, grammar: Grammar, good: str, bad: str) -> None:
    assert takes(grammars, grammar, good)
    assert not takes(grammars, grammar, bad)


def test_masks_never_allow_control_tokens_as_text(grammars: Grammars) -> None:
    matcher = compiled(grammars, Grammar(kind="regex", param="regex", text=".*"))
    assert isinstance(matcher, XgrammarMatcher)
    masks = MaskFiller().fill([matcher])
    assert masks
    allowed = masks.apply(torch.zeros(1, VOCABULARY))[0]
    assert (allowed[[0, 1, 3, 4, 5, 6]] < 0).all() and allowed[EOS] == 0


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="regex", param="regex", text="(?=a)b"),
        Grammar(kind="schema", param="response_format", text='{"type": "integer", "minimum": 5, "maximum": 2}'),
        Grammar(kind="schema", param="response_format", text="{"),
    ],
)
def test_unsupported_grammar_is_refused(grammars: Grammars, grammar: Grammar) -> None:
    refused = compiled(grammars, grammar)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.param) == ("bad_grammar", grammar.param)
    assert refused.message.startswith(f"{grammar.param}: ") and ".cc" not in refused.message


def test_only_rows_with_a_grammar_are_masked(grammars: Grammars) -> None:
    matcher = compiled(grammars, Grammar(kind="regex", param="regex", text="a"))
    assert isinstance(matcher, XgrammarMatcher)
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 100] = 5.0
    greedy = Sampling(max_tokens=1)
    requests = [SampleRequest(greedy, 0, 1), SampleRequest(greedy, 0, 1, (), matcher)]
    free, bound = sample(logits, requests, MaskFiller().fill([None, matcher]))
    assert free.token == 100 and TOKENIZER.decode([bound.token]) == "a"
    assert logits[1, 100] == 5.0
