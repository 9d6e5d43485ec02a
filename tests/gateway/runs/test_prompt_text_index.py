import random

from gateway.runs.prompt_text_index import MIN_CHARS, PromptTextIndex

LONG = "You are an agent. " * 300


def test_text_that_extends_a_chain_continues_it() -> None:
    blocks = PromptTextIndex()
    blocks.claim("a", LONG + "first", tenant="t")
    assert blocks.find(LONG + "first answer and second", tenant="t") == "a"


def test_runs_of_one_program_begin_alike_and_are_not_merged() -> None:
    blocks = PromptTextIndex()
    blocks.claim("a", LONG + "the first task", tenant="t")
    assert blocks.find(LONG + "another task", tenant="t") is None


def test_equal_text_is_a_retry() -> None:
    blocks = PromptTextIndex()
    blocks.claim("a", LONG + "first", tenant="t")
    assert blocks.find(LONG + "first", tenant="t") == "a"


def test_ambiguous_text_matches_no_chain() -> None:
    blocks = PromptTextIndex()
    blocks.claim("a", LONG, tenant="t")
    blocks.claim("b", LONG, tenant="t")
    assert blocks.find(LONG + "more", tenant="t") is None
    blocks.claim("b", LONG + "more of b", tenant="t")
    assert blocks.find(LONG + "more of b, and so on", tenant="t") == "b"
    assert blocks.find(LONG + "else", tenant="t") == "a"


def test_short_prefix_matches_no_chain() -> None:
    blocks = PromptTextIndex()
    blocks.claim("a", "x" * (MIN_CHARS - 1), tenant="t")
    assert blocks.find("x" * 500, tenant="t") is None


def test_other_tenant_matches_no_chain() -> None:
    blocks = PromptTextIndex()
    blocks.claim("a", LONG, tenant="t")
    assert blocks.find(LONG + "more", tenant="u") is None


def test_a_random_walk_stays_bounded_and_never_merges_two_histories() -> None:
    rng, blocks = random.Random(1), PromptTextIndex(max_chains=30)
    texts = {f"c{number}": LONG + f"task {number}. " for number in range(60)}
    found_again = 0
    for _ in range(1500):
        chain = rng.choice(list(texts))
        texts[chain] += "".join(rng.choice("abcdef ") for _ in range(rng.randrange(1, 400)))
        found = blocks.find(texts[chain], tenant="t")
        assert found in (None, chain)
        found_again += found == chain
        blocks.claim(chain, texts[chain], tenant="t")
        if rng.random() < 0.05:
            blocks.forget(rng.choice(list(texts)))
        blocks.check()
    assert len(blocks) <= 30
    assert found_again > 400
