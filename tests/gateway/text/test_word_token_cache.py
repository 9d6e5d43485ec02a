"""What words remember is what the tokenizer says, wherever they stand."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from benchmarks.report import ROOT
from gateway.text import word_token_cache as words
from gateway.text.model_text import ModelText
from gateway.text.word_token_cache import PATTERNS, WordTokenCache
from tests.gateway.text.small_models import CORPUS, files_of
from tests.gateway.text.volatile_text import STEADY

PIECES = (
    " ", " ", " ", "  ", "\n", "\r\n", "\t", "\x1c", "\u00a0", "\u2003", "a", "the", "The", "Größe", "é", "e\u0301", "\u0301",
    "東京", "🙂", "1", "23", "²", "'s", "'LL", "(", "):", ";", "_", "<end>", "<en", ">", "<tool>", "¶",
)  # fmt: skip


@cache
def tokenizer_of(pattern: str, normal: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if normal:
        tokenizer.normalizer = normalizers.NFC()
    special = [AddedToken(token, special=True, normalized=False) for token in ("<end>", "<tool>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, "the the\n\n  the a a();\n    a(); 12 345 6"] * 20, trainer)
    return tokenizer


@cache
def words_of(pattern: str, normal: bool) -> WordTokenCache:
    found = WordTokenCache.of(tokenizer_of(pattern, normal), {"<end>", "<tool>"})
    assert found is not None
    return found


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@settings(STEADY, max_examples=1500)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_cached_and_new_words_have_the_ids_of_the_tokenizer(pattern: str, normal: bool, pieces: list[str]) -> None:
    text = "".join(pieces)
    wanted = tokenizer_of(pattern, normal).encode(text, add_special_tokens=False).ids
    for _ in range(3):
        ids = words_of(pattern, normal).encode(text)
        assert ids is None or list(ids) == wanted
    assert ids is not None or (normal and not text.isascii()) or len(set(text.split(" "))) > words.MAX_LEARNED


def test_text_of_many_new_words_goes_to_the_tokenizer() -> None:
    known = WordTokenCache.of(tokenizer_of(min(PATTERNS)), {"<end>", "<tool>"})
    assert known is not None
    text = " ".join(f"w{number}" for number in range(3 * words.MAX_LEARNED))
    assert known.encode(text) is None and known.encode(text) is None
    assert list(known.encode(text) or ()) == tokenizer_of(min(PATTERNS)).encode(text).ids
    assert known.encode("a" * (words.MAX_CHARS + 1)) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 100)
    known = WordTokenCache.of(tokenizer_of(min(PATTERNS)), {"<end>", "<tool>"})
    assert known is not None
    for number in range(500):
        known.encode(f"a{number % 3} b{number} {'x' * (words.MAX_WORD_CHARS + 1)}")
        known.encode(f"first{number}")
        assert len(known) <= 100 + words.MAX_LEARNED


@pytest.mark.parametrize("name", ["llama3", "mistral", "awkward"])
def test_tokenizer_without_safe_splits_is_not_cached(name: str) -> None:
    text = ModelText.from_files(files_of(name))
    assert WordTokenCache.of(text.tokenizer, text._anchors.contents) is None


@pytest.mark.parametrize("model", ["nano", "pico"])
def test_shipped_models_use_the_word_cache(model: str) -> None:
    text = ModelText.from_directory(ROOT / "backends" / "zoo" / model)
    assert WordTokenCache.of(text.tokenizer, text._anchors.contents) is not None
