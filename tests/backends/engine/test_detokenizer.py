"""Streamed text joined is the text of all tokens at once, in whole characters, and stops before a stop string."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from backends.engine.detokenizer import Decoder, Detokenizer
from backends.engine.stop import StopFilter


def streamed(decoder: Decoder, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decoder)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.close()]


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_even_broken_characters_join_to_the_whole(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    ids = rng.choices(range(tokenizer.get_vocab_size()), k=60)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_no_piece_ends_inside_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = streamed(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)
    assert "".join(pieces) == text
    assert "�" in text or not any("�" in piece for piece in pieces)


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("the fox").ids, 0, *tokenizer.encode(" jumps").ids, 0]
    assert "".join(streamed(tokenizer, ids)) == "the fox jumps"


@given(st.lists(st.sampled_from(["a", "\u2581b", "\u2581", "c", "\u2581\u2581d"]), min_size=1, max_size=20))
def test_a_decoder_that_strips_the_first_space_keeps_the_others(words: list[str]) -> None:
    vocabulary = {"a": 0, "\u2581b": 1, "\u2581": 2, "c": 3, "\u2581\u2581d": 4}
    spaced = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    spaced.decoder = decoders.Metaspace()
    ids = [vocabulary[word] for word in words]
    assert "".join(streamed(spaced, ids)) == spaced.decode(ids)


def test_long_run_of_tokens_without_text_changes_nothing(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("the").ids, *[0] * 300, *tokenizer.encode(" 🦊 fox").ids]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == "the 🦊 fox"


def test_endless_broken_bytes_are_released(tokenizer: Tokenizer) -> None:
    broken = tokenizer.token_to_id("ÿ")
    assert broken is not None
    pieces = streamed(tokenizer, [broken] * 200)
    assert any(pieces[:-1]) and set("".join(pieces)) == {"�"}


def naive_stop(text: str, stops: list[str]) -> str:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


@given(
    st.lists(st.text("ab<", max_size=4), max_size=12),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string_in_any_chunking(pieces: list[str], stops: list[str]) -> None:
    stop_filter, sent = StopFilter(stops), ""
    for seen in range(len(pieces)):
        passed = stop_filter.feed(pieces[seen])
        sent += passed.text
        if passed.stop:
            break
        held = "".join(pieces[: seen + 1])[len(sent) :]
        assert not held or any(stop.startswith(held) for stop in stops), "text is held that begins no stop string"
    else:
        sent += stop_filter.close()
    whole = "".join(pieces)
    if sent != naive_stop(whole, stops):  # a longer stop that starts earlier was still incomplete when a shorter one was found
        assert any(whole.startswith(stop, len(sent)) for stop in stops)
