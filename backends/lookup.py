"""Prompt lookup: agents repeat what they have read, so what followed these tokens before is a guess of what comes now."""

from collections.abc import Sequence

GRAM = 3
"""Tokens that must be alike for what followed to be a guess."""


class Lookup:
    """Of one sequence: where each of its grams was seen last."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = GRAM

    def guess(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` tokens to come. `tokens` only ever grow between calls."""
        for i in range(self._seen, len(tokens)):
            self._after[tuple(tokens[i - GRAM : i])] = i
        self._seen = max(self._seen, len(tokens))
        at = self._after.get(tuple(tokens[-GRAM:]))
        return () if at is None else tuple(tokens[at : at + count])
