"""Positions where tokenization may restart: added tokens that split a text so that both parts tokenize independently.

Tokenizers first cut a text at its added tokens, the leftmost longest first, and treat each part separately. A token is an
anchor if no neighbour can change whether it matches. It must not depend on adjacent characters, and no other added token may
contain it or overlap its beginning.
"""

from array import array
from collections.abc import Sequence
from typing import AnyStr, NamedTuple

from tokenizers import AddedToken, Tokenizer


class SplitPoints(NamedTuple):
    """Anchors of a text. The n-th begins at character `chars[n]` and is token `tokens[n]`. Both ascend."""

    chars: "array[int]"
    tokens: "array[int]"


class SafeSplits:
    """The anchors of one tokenizer, by token id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        first_cut = {i: token for i, token in tokenizer.get_added_tokens_decoder().items() if not token.normalized}
        contents = {token.content for token in first_cut.values() if token.content}
        overlapping = {content[start:] for content in contents for start in range(1, len(content))}
        joined = "\0".join(contents)
        self._content_by_id = {
            i: token.content
            for i, token in first_cut.items()
            if _stands_alone(token)
            and joined.count(token.content) == 1
            and not any(token.content[:end] in overlapping for end in range(1, len(token.content) + 1))
        }

    @property
    def contents(self) -> frozenset[str]:
        return frozenset(self._content_by_id.values())

    def length(self, token_id: int) -> int:
        """Return the length in characters."""
        return len(self._content_by_id[token_id])

    def find(self, text: str, ids: Sequence[int]) -> SplitPoints | None:
        """Return the anchors of a text with tokens `ids`, or None if an anchor's id has another origin (as unknown tokens
        do)."""
        content_by_id = self._content_by_id
        tokens = array("I", [n for n, i in enumerate(ids) if i in content_by_id])
        chars = array("I")
        end = 0
        for n in tokens:
            content = content_by_id[ids[n]]
            start = text.find(content, end)
            if start < 0:
                return None
            chars.append(start)
            end = start + len(content)
        found = [content_by_id[ids[n]] for n in tokens]
        if any(text.count(content) != found.count(content) for content in set(found)):
            return None
        return SplitPoints(chars, tokens)


def _stands_alone(token: AddedToken) -> bool:
    content = token.content
    return bool(content) and not (token.lstrip or token.single_word or content[0].isspace() or "\0" in content)


def common_prefix(a: AnyStr, b: AnyStr) -> int:
    """Return the length of the common prefix, in characters or bytes. It bisects, so that whole slices are compared at a
    time."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
