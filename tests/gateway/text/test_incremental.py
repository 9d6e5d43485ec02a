"""Encoding from where an earlier prompt left off gives what encoding from scratch gives, whatever the earlier one was."""

from datetime import datetime
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.request import Message, Tool
from gateway.text.model_text import Encoded, ModelText
from gateway.text.safe_splits import common_prefix
from tests.gateway.text import conversations as some
from tests.gateway.text.small_models import BUILDERS, files_of
from tests.gateway.text.volatile_text import STEADY

NOW = datetime(2026, 1, 1)
AWKWARD = (
    "<s>", "</s>", "[a]", "[a]b", "b", "<s", ">", "x", "<|y|>", "x<|y|>", "aba", "ab", "a", " <left>", "<right> ", "<word>",
    "<NORM>", "<norm>", "  ", "\t", "Hello", "Ω", "<unk>", "x<unk>",
)  # fmt: skip


@cache
def text_of(name: str) -> ModelText:
    return ModelText.from_files(files_of(name))


@st.composite
def histories(draw: st.DrawFn, pieces: st.SearchStrategy[str]) -> list[str]:
    """Texts that grow, shrink and branch off each other."""
    texts = [""]
    for _ in range(draw(st.integers(1, 5))):
        base = draw(st.sampled_from(texts))
        kept = base[: draw(st.integers(0, len(base)))] if draw(st.booleans()) else base
        texts.append(kept + "".join(draw(st.lists(pieces, max_size=6))))
    return texts


def check_chain(text: ModelText, texts: list[str]) -> None:
    previous: Encoded | None = None
    for wanted in texts:
        scratch = text.continue_from(None, wanted)
        assert scratch.ids == text.encode(wanted)
        previous = text.continue_from(previous, wanted)
        assert previous == scratch


@settings(STEADY, max_examples=1000)
@given(texts=histories(st.sampled_from(AWKWARD)))
def test_awkward_added_tokens_change_nothing(texts: list[str]) -> None:
    check_chain(text_of("awkward"), texts)


def test_id_of_an_added_token_from_plain_text_is_not_an_anchor() -> None:
    check_chain(text_of("awkward"), ["Ωx<unk>", "Ωx<unk>b"])


@pytest.mark.parametrize("name", BUILDERS)
@settings(STEADY, max_examples=100)
@given(texts=histories(some.fragments))
def test_texts_that_grow_shrink_and_branch(name: str, texts: list[str]) -> None:
    check_chain(text_of(name), texts)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@settings(STEADY, max_examples=40)
@given(messages=some.conversations(), other=some.conversations(), tools=some.tools)
def test_conversations_that_grow_and_branch(
    name: str, messages: tuple[Message, ...], other: tuple[Message, ...], tools: tuple[Tool, ...]
) -> None:
    text = text_of(name)
    previous: Encoded | None = None
    for turn in (messages[:1], messages, messages[:2] + other, messages):
        previous = text.prompt(turn, tools, now=NOW, previous=previous)
        assert previous == text.prompt(turn, tools, now=NOW)


def test_only_text_after_the_last_common_anchor_is_encoded() -> None:
    text = text_of("chatml")
    encoded: list[str] = []

    class Watched(ModelText):
        def encode(self, part: str):  # type: ignore[no-untyped-def]
            encoded.append(part)
            return text.encode(part)

    watched = Watched.from_files(files_of("chatml"))
    messages = (Message(role="user", content="long " * 500),)
    first = watched.prompt(messages, (), now=NOW)
    answer = (Message(role="assistant", content="fine"), Message(role="user", content="more"))
    second = watched.prompt(messages + answer, (), now=NOW, previous=first)
    assert encoded[1] == "<|im_start|>assistant\nfine<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    assert watched.prompt(messages + answer, (), now=NOW, previous=second) is second
    assert len(encoded) == 2


def test_prompt_of_another_model_is_not_reused() -> None:
    other = text_of("llama3").prompt((Message(role="user", content="hi"),), (), now=NOW)
    text = text_of("chatml")
    assert text.continue_from(other, other.text).ids == text.encode(other.text)


@settings(STEADY)
@given(a=st.text("ab", max_size=12), b=st.text("ab", max_size=12))
def test_common_prefix_is_the_longest(a: str, b: str) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n in (len(a), len(b)) or a[n] != b[n]
