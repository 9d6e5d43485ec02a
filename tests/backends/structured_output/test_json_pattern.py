"""A string held to a `pattern` is what Python's expressions match in full, and always JSON: by walking at random through the
masks and by trying every short word."""

import itertools
import json
import random
import re

import pytest

from backends.engine.request_limits import Refusal
from backends.structured_output.grammar import Grammars, MaskFiller, XgrammarMatcher
from backends.wire import Grammar
from tests.backends.structured_output.test_grammar import EOS, TOKENIZER, VOCABULARY, compiled, grammars

__all__ = ["grammars"]

WORDS = ["".join(letters) for length in range(5) for letters in itertools.product("abc", repeat=length)]


def expression(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if depth > 3 or kind < 0.35:
        return rng.choice(["a", "b", "c", "[ab]", "[^a]", "."])
    if kind < 0.55:
        return expression(rng, depth + 1) + expression(rng, depth + 1)
    if kind < 0.8:
        return "(" + "|".join(expression(rng, depth + 1) for _ in range(rng.randint(2, 3))) + ")"
    return f"({expression(rng, depth + 1)})" + rng.choice(["*", "+", "?", "{2}", "{1,2}", "{0,2}", "{2,}"])


def matcher(grammars: Grammars, pattern: str) -> XgrammarMatcher | Refusal:
    schema = json.dumps({"type": "string", "pattern": pattern})
    return compiled(grammars, Grammar(kind="schema", param="schema", text=schema))


def walked(at: XgrammarMatcher, rng: random.Random) -> str | None:
    """A text that the masks let through, None where it grows long."""
    filler, tokens = MaskFiller(), list[int]()
    while len(tokens) < 30:
        masks = filler.fill([at])
        assert masks
        masks.filled.result()
        words = masks.bits[0].tolist()
        allowed = [token for token in range(VOCABULARY) if words[token // 32] >> (token % 32) & 1]
        assert allowed
        tokens.append(EOS if EOS in allowed and rng.random() < 0.5 else rng.choice(allowed))
        if at.accept(tokens[-1]):
            return TOKENIZER.decode(tokens)
    return None


@pytest.mark.parametrize("seed", range(60))
def test_masked_text_matches_the_pattern(grammars: Grammars, seed: int) -> None:
    rng = random.Random(seed)
    pattern = expression(rng)
    for _ in range(5):
        at = matcher(grammars, pattern)
        assert isinstance(at, XgrammarMatcher)
        said = walked(at, rng)
        if said is not None and "�" not in said:
            assert re.fullmatch(pattern, json.loads(said)), (pattern, said)


@pytest.mark.parametrize("pattern", ["b{1,2}|(b|[ab])", "(a{0,2}|c|a)", "(c{2,}|a|a{1,2})", "((c{2,}|b))?", "^(?:(a)+b?)$"])
def test_pattern_accepts_exactly_the_expected_words(grammars: Grammars, pattern: str) -> None:
    taken = []
    for word in WORDS:
        at = matcher(grammars, pattern)
        assert isinstance(at, XgrammarMatcher)
        inner = at._matcher
        if inner.accept_string(f'"{word}"') and inner.is_completed():
            taken.append(word)
    assert taken == [word for word in WORDS if re.fullmatch(pattern, word)]


@pytest.mark.parametrize("pattern", [".*", "[ -~]+", r"[^a]+", r"\D[^a]", r'["x]', "é[à-ü]{2}"])
def test_characters_that_json_escapes_are_excluded_from_classes(grammars: Grammars, pattern: str) -> None:
    rng = random.Random(pattern)
    for _ in range(20):
        at = matcher(grammars, pattern)
        assert isinstance(at, XgrammarMatcher)
        said = walked(at, rng)
        if said is not None and "�" not in said:
            assert re.fullmatch(pattern, json.loads(said), re.DOTALL)


@pytest.mark.parametrize(
    "pattern", [r"[\^\w]", '["]', r"[\\]", r'["\\]', r'a["\\]+b', r'["\\]|a', r"[\x22]", r"[\n\t]", '"', r"[\x00-\x1f]"]
)
def test_unsupported_pattern_is_refused(grammars: Grammars, pattern: str) -> None:
    refused = matcher(grammars, pattern)
    assert isinstance(refused, Refusal) and "`pattern`" in refused.message
