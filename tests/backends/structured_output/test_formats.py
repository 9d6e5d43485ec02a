"""Every text that our expression of a format lets through is of that format, and the masks take it."""

import json
import random
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.structured_output.formats import PATTERNS
from backends.structured_output.grammar import Grammars, MaskFiller, XgrammarMatcher
from backends.wire import Grammar
from backends.worker.startup import read_tokenizer
from gateway.api.json_schema import FORMATS
from tests.backends.structured_output.test_grammar import compiled

NANO = Path(__file__).parents[3] / "backends" / "zoo" / "nano"
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
EXAMPLES = {
    "date": (["0001-01-31", "2026-02-28"], ["0000-01-01", "2026-02-30", "2026-04-31"]),
    "time": (["23:59:59Z", "00:00:00.5+01:00"], ["24:00:00Z", "10:00:00"]),
    "date-time": (["2026-07-31T10:00:00Z"], ["0000-07-31T10:00:00Z", "2026-07-31"]),
    "duration": (["P1Y2M3DT4H", "PT5M", "P3W"], ["P", "PT", "P1Y2W"]),
    "email": (["ada.l@example.org"], ["ada", "@example.org", "a..b@c.d"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "ipv4": (["0.0.0.0", "192.168.10.255"], ["003.1.1.1", "256.1.1.1", "1.1.1"]),
    "ipv6": (["::", "::1", "2001:db8::ff:0", "1:2:3:4:5:6:7:8"], ["1:2:3:4:5:6:7", "1::2::3", ":::"]),
    "hostname": (["a-b.example.org", "localhost"], ["-a.org", "a-.org", "a..b", "127.0.0.1"]),
    "uri": (["https://example.org:80/a/b?c=d#e", "urn:isbn:1", "mailto:a@b.c"], ["/a", "a b:c", "http://a b/"]),
    "uri-reference": (["/a/b", "?q", "", "a/b:c"], ["http://a b/", "%zz"]),
    "uri-template": (["/a/{b}{?c,d*}", "{+x:12}"], ["{", "{}", "a}"]),
    "json-pointer": (["", "/a~1b/0", "/"], ["a", "/~2"]),
    "relative-json-pointer": (["0", "1#", "2/a"], ["#", "01", "-1"]),
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    tokenizer = read_tokenizer(NANO)
    return Grammars(tokenizer, vocab_size=tokenizer.get_vocab_size(), eos_tokens=[2], timeout_s=60)


def test_every_accepted_format_has_an_expression() -> None:
    assert FORMATS == PATTERNS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_text_of_the_expression_is_valid_for_the_format(name: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(PATTERNS[name].strip("^$"), fullmatch=True))
    assert text.isascii() and json.dumps(text) == f'"{text}"'
    if name not in CHECKER.checkers:
        pytest.skip("jsonschema checks it with its extra `format-nongpl` only")
    assert CHECKER.conforms(text, name)


@pytest.mark.parametrize("name", PATTERNS)
def test_masks_enforce_the_format(grammars: Grammars, name: str) -> None:
    good, bad = EXAMPLES[name]
    schema = json.dumps({"type": "string", "format": name})
    for text in good + bad:
        matcher = compiled(grammars, Grammar(kind="schema", param="response_format", text=schema))
        assert isinstance(matcher, XgrammarMatcher)
        tokens = read_tokenizer(NANO).encode(json.dumps(text), add_special_tokens=False).ids
        assert all(matcher._matcher.accept_token(token) for token in [*tokens, 2]) == (text in good), text
        assert bool(re.search(PATTERNS[name], text)) == (text in good), text


@pytest.mark.parametrize("name", PATTERNS)
def test_masked_text_is_valid_for_the_format(grammars: Grammars, name: str) -> None:
    """Walks at random through what the library makes of the expression: it is not always what the expression says."""
    tokenizer, filler, rng = read_tokenizer(NANO), MaskFiller(), random.Random(name)
    quote = tokenizer.token_to_id('"')
    marks = {tokenizer.token_to_id(mark) for mark in ":/.-@{}"}
    schema = json.dumps({"type": "string", "format": name})
    ended = 0
    for _ in range(12):
        matcher = compiled(grammars, Grammar(kind="schema", param="response_format", text=schema))
        assert isinstance(matcher, XgrammarMatcher)
        said: list[int] = []
        while len(said) < 80:
            masks = filler.fill([matcher])
            assert masks
            allowed = masks.apply(torch.zeros(1, matcher.vocab_size))[0].eq(0).nonzero().flatten().tolist()
            ending = [quote] * bool(said and quote in allowed)
            token = rng.choice(rng.choice([allowed, ending or allowed, [t for t in allowed if t in marks] or allowed]))
            if matcher.accept(token):
                ended += 1
                text = json.loads(tokenizer.decode(said))
                assert re.search(PATTERNS[name], text), text
                break
            said.append(token)
    assert ended
