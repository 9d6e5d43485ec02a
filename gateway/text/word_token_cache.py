"""Caches token ids of words: a lookup takes a fifth of the time of tokenizing. The ids equal the tokenizer's own.

A text is cut before every space that is not followed by whitespace. Invariant: for each pattern in PATTERNS, no match crosses
such a cut. A lookahead (`no word follows`) gives the same result at the space as at the end of a text. So the parts tokenize as
the whole does. Other tokenizers are not cached.
"""

import json
import operator
import re
from array import array
from collections.abc import Collection
from itertools import islice
from typing import Any, Self

from tokenizers import Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # pattern of ByteLevel
PATTERNS = frozenset(
    {
        _GPT2,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\n| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s",  # pico and nano
    }
)
"""Patterns of GPT-2, Llama 3, Qwen and ours."""
MAX_CHARS = 16_384
"""Characters. A longer text is tokenized once, on a thread."""
MAX_WORDS, MAX_WORD_CHARS = 65_536, 48
MAX_LEARNED = 32
"""Words learned per text: a word alone takes four times as long as within a text."""
_CUT = re.compile(r" (?=\S)")


_quick_cut = operator.methodcaller("split", " ")


class WordTokenCache:
    """Cache of one tokenizer, thread-safe. It is bounded: when full it is emptied."""

    def __init__(self, tokenizer: Tokenizer, added: Collection[str], *, ascii_only: bool) -> None:
        """Make an empty cache. `added` are the tokens at which the tokenizer cuts a text first."""
        self._tokenizer = tokenizer
        self._ascii_only = ascii_only
        self._added = {content: array("I", [tokenizer.token_to_id(content) or 0]).tobytes() for content in added}
        self._begin_added = {content[0] for content in added}
        self._at_added = re.compile("|".join(map(re.escape, added)))
        self._ids: dict[str, bytes] = {}
        """Ids of a word after a space, by the word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, anchors: Collection[str]) -> Self | None:
        """Return a cache, or None if the tokenizer's texts cannot be cut so. `anchors` are its added tokens that are safe
        splits."""
        added = tokenizer.get_added_tokens_decoder().values()
        all_separable = all(token.content in anchors and not token.rstrip for token in added)
        if not all_separable or tokenizer.encode_special_tokens:
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
        """Return the ids (uint32), or None if tokenizing is faster. Some of the unknown words are then cached."""
        if len(text) > MAX_CHARS or (self._ascii_only and not text.isascii()):
            return None
        ids = array("I")
        start = 0
        # searching for all of them takes as long as the rest
        may_have_added = any(first in text for first in self._begin_added)
        for match in self._at_added.finditer(text) if may_have_added else ():
            part = self._part(text[start : match.start()])
            if part is None:
                return None
            ids.frombytes(part + self._added[match.group()])
            start = match.end()
        part = self._part(text[start:])
        if part is None:
            return None
        ids.frombytes(part)
        return ids

    def _part(self, text: str) -> bytes | None:
        """Return the ids of a text without added tokens.

        With several spaces between words, the quick cut gives parts that are empty or begin with whitespace. Such words are
        never cached.
        """
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
        """Return the ids of a part's first word, which has no space before it. Its key begins with a space, unlike all
        others."""
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
    """Return the single pattern by which a byte-level tokenizer splits; None for any other tokenizer."""
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
