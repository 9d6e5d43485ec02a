"""Guesses from what was read or said before: agents repeat themselves, and what followed the same tokens may follow again.

Nothing is indexed: a text is searched when a guess is wanted, which for thousands of tokens takes microseconds.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.spec_decode.state import Origin

LONGEST = 6
"""Tokens in a row that are compared at most; agreeing on more says little more."""
SEARCHED_TOKENS = 16_384
"""Of the end of a sequence. Also what is kept of a tenant's answers, and the half of it after it was full."""
MAX_TENANTS = 64
END = -1
"""Between two answers: no token, so nothing matches across it."""

Text = NDArray[np.int32]


class NgramMatch(NamedTuple):
    """`tokens` followed where the last `length` tokens were last seen, in this text."""

    origin: Origin
    length: int
    tokens: tuple[int, ...]


def find(text: Text, tail: Sequence[int], count: int, origin: Origin) -> NgramMatch | None:
    """The place with the longest part of `tail` behind which something follows; the last one among equals."""
    at = np.flatnonzero(text[:-1] == tail[-1])
    if not len(at):
        return None
    length = 1
    while length < min(LONGEST, len(tail)):
        longer = _agreeing(text, at, tail, length)
        if not len(longer):
            break
        at, length = longer, length + 1
    followed = text[at[-1] + 1 : at[-1] + 1 + count].tolist()
    tokens = tuple(followed[: followed.index(END)] if END in followed else followed)
    return NgramMatch(origin, length, tokens) if tokens else None


def _agreeing(text: Text, at: NDArray[np.intp], tail: Sequence[int], length: int) -> NDArray[np.intp]:
    """Those of the places `at` that agree on one more token in front of `length` of them."""
    at = at[at >= length]
    agrees: NDArray[np.bool_] = text[at - length] == tail[-1 - length]
    return at[agrees]


def own(tokens: Sequence[int], count: int) -> NgramMatch | None:
    """What followed the end of `tokens` (an array of 32-bit integers) earlier in them."""
    text = np.frombuffer(tokens, np.int32)[-SEARCHED_TOKENS:]  # type: ignore[call-overload]
    return find(text, tokens[-LONGEST:], count, "own")


class AnswerHistory:
    """The last answers, by tenant: what one tenant's agents say is no guess for another's, which its timing would tell."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, tuple[Text, int]] = OrderedDict()

    def add(self, tenant: str, tokens: Sequence[int], num_output: int) -> None:
        """The last `num_output` of `tokens`, and the few in front of them by which they are found."""
        added = np.asarray([END, *tokens[-num_output - LONGEST :]][-SEARCHED_TOKENS // 2 :], np.int32)
        text, length = self._texts.get(tenant) or (np.empty(SEARCHED_TOKENS, np.int32), 0)
        if length + len(added) > len(text):
            kept = len(text) // 2
            text[:kept], length = text[length - kept : length].copy(), kept
        text[length : length + len(added)] = added
        self._texts[tenant] = text, length + len(added)
        self._texts.move_to_end(tenant)
        if len(self._texts) > MAX_TENANTS:
            self._texts.popitem(last=False)

    def find(self, tenant: str, tokens: Sequence[int], count: int) -> NgramMatch | None:
        """What followed the end of `tokens` in the tenant's answers."""
        text, length = self._texts.get(tenant, (None, 0))
        return None if text is None else find(text[:length], tokens[-LONGEST:], count, "said")
