"""Token ids of words that came before: looking them up takes a fifth of tokenizing them. The ids are the tokenizer's own.

A text is cut in front of every space that no whitespace follows. A match of a pattern in PATTERNS ends there or before: none
goes on over such a space from in front of it, and what looks ahead (whether no word follows) says the same of the space as of
the end of a text. So the parts tokenize as they do together. Other tokenizers are left alone.
"""

import json
import operator
import re
from array import array
from collections.abc import Collection
from itertools import islice
from typing import Any, Self

from tokenizers import Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
PATTERNS = frozenset(
    {
        _GPT2,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\n| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s",  # pico and nano
    }
)
"""Of GPT-2, Llama 3, Qwen and ours."""
MAX_CHARS = 16_384
"""A longer text is read once, and on a thread."""
MAX_WORDS, MAX_WORD_CHARS = 65_536, 48
MAX_LEARNED = 32
"""Of one text: a word by itself takes four times of what it takes within a text."""
_CUT = re.compile(r" (?=\S)")


_quick_cut = operator.methodcaller("split", " ")


class WordTokenCache:
    """Bounded: when it is full it starts over. May be called from several threads."""

    def __init__(self, tokenizer: Tokenizer, added: Collection[str], *, ascii_only: bool) -> None:
        """`added` are the tokens at which the tokenizer cuts a text before anything else."""
        self._tokenizer = tokenizer
        self._ascii_only = ascii_only
        self._added = {content: array("I", [tokenizer.token_to_id(content) or 0]).tobytes() for content in added}
        self._begin_added = {content[0] for content in added}
        self._at_added = re.compile("|".join(map(re.escape, added)))
        self._ids: dict[str, bytes] = {}
        """Of a word behind a space, by the word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, anchors: Collection[str]) -> Self | None:
        """None for a tokenizer whose texts cannot be cut so; `anchors` are its added tokens that stand alone."""
        added = tokenizer.get_added_tokens_decoder().values()
        told_apart = all(token.content in anchors and not token.rstrip for token in added)
        if not told_apart or tokenizer.encode_special_tokens:
            return None
        described = json.loads(tokenizer.to_str())
        normalizer = described["normalizer"]
        if (normalizer or {"type": "NFC"})["type"] != "NFC" or described["model"]["type"] != "BPE":
            return None
        if _pattern(described["pre_tokenizer"]) not in PATTERNS or described["model"].get("dropout"):
            return None
        return cls(tokenizer, [token.content for token in added], ascii_only=normalizer is not None)

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, text: str) -> "array[int] | None":
        """None when that would take longer than tokenizing it; some of its words are known from then on."""
        if len(text) > MAX_CHARS or (self._ascii_only and not text.isascii()):
            return None
        ids = array("I")
        start = 0
        might = any(first in text for first in self._begin_added)  # searching for all of them takes as long as the rest
        for found in self._at_added.finditer(text) if might else ():
            part = self._part(text[start : found.start()])
            if part is None:
                return None
            ids.frombytes(part + self._added[found.group()])
            start = found.end()
        part = self._part(text[start:])
        if part is None:
            return None
        ids.frombytes(part)
        return ids

    def _part(self, text: str) -> bytes | None:
        """No added token is in it. Where there is more than a space between words, the quick cut gives parts that are empty or
        begin with whitespace, and no such word is kept."""
        ids = self._ids
        for cut in (_quick_cut, _CUT.split):
            words = cut(text)
            try:
                return self._begin(words.pop(0)) + b"".join(map(ids.__getitem__, words))
            except KeyError:
                pass
        if len(ids) > MAX_WORDS:
            ids = self._ids = {}
        missing = (word for word in dict.fromkeys(words) if word not in ids)
        learned = {word: self._encode(" " + word) for word in islice(missing, MAX_LEARNED)}
        for word, its in learned.items():
            if len(word) <= MAX_WORD_CHARS:
                ids[word] = its
        if next(missing, None) is not None:
            return None
        first = _CUT.split(text, maxsplit=1)[0]
        return self._begin(first) + b"".join([ids.get(word) or learned[word] for word in words])

    def _begin(self, word: str) -> bytes:
        """Of the word that a part begins with: no space is in front of it. It is kept behind one, as no other word is."""
        its = self._ids.get(" " + word)
        if its is None:
            its = self._encode(word)
            if len(word) <= MAX_WORD_CHARS and len(self._ids) <= MAX_WORDS:
                self._ids[" " + word] = its
        return its

    def _encode(self, text: str) -> bytes:
        if not text:
            return b""
        return array("I", self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids).tobytes()


def _pattern(described: Any) -> str | None:
    """The one pattern by which the tokenizer cuts, before it takes bytes; None when it does anything else."""
    match described:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None
