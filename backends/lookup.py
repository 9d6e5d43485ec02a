"""Speculative decoding by prompt lookup: agents repeat what they have read, so what followed these tokens before is a guess.

A guess costs its part of a step and saves a step for every token of it that the model says itself. Tokens are chosen as
without guesses, from (seed, position), so the text is the same. Pure: costs come in, as they were measured.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from backends.step_cost import Coefficients
from backends.wire import Sampling

GRAM = 3
"""Tokens that must be alike for what followed to be a guess."""
MAX_DRAFTS = 8
HOPED = 0.6
"""Chance that a guessed token is right, before any was tried."""
LEARNING, FORGETTING = 0.15, 0.01
ALIKE = frozenset({"max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "top_logprobs", "ignore_eos"})
"""Parameters that choose a token by its position alone. With any other one that is set, nothing is guessed."""


class Lookup:
    """Of one sequence: where each of its grams was seen last, and how often guesses were right."""

    def __init__(self) -> None:
        self.chance = HOPED
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = GRAM

    def guess(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` tokens to come. `tokens` only ever grow between calls."""
        for i in range(self._seen, len(tokens)):
            self._after[tuple(tokens[i - GRAM : i])] = i
        self._seen = max(self._seen, len(tokens))
        at = self._after.get(tuple(tokens[-GRAM:]))
        return () if at is None else tuple(tokens[at : at + count])

    def learn(self, drafted: int, accepted: int) -> None:
        """Guesses behind the first wrong one say nothing."""
        for number in range(min(accepted + 1, drafted)):
            self.chance += LEARNING * ((number < accepted) - self.chance)

    def forget(self) -> None:
        """A sequence that is no longer guessed for is tried again some time."""
        self.chance += FORGETTING * (HOPED - self.chance)


class Gain(NamedTuple):
    """Seconds, of a step with `num_sequences` that decode."""

    per_token: float
    per_draft: float


def gain(cost: Coefficients, num_sequences: int, mean_context: float) -> Gain:
    """What a token more is worth, and what a guess costs: a + b * tokens + c * tokens * context + d * bytes, see `step_cost`.

    The bytes of KV are read once for a sequence, however many of its tokens are computed.
    """
    a, b, c, _ = cost
    draft = b + c * mean_context
    return Gain(a / num_sequences + draft, draft)


def best_count(chance: float, of: Gain, most: int = MAX_DRAFTS) -> int:
    """The number of guesses that gains most, 0 where none does. Guess n counts only if all before it are right."""
    best, best_saved, saved, right = 0, 0.0, 0.0, 1.0
    for count in range(1, most + 1):
        right *= chance
        saved += right * of.per_token - of.per_draft
        if saved > best_saved:
            best, best_saved = count, saved
    return best


def may_guess(sampling: Sampling) -> bool:
    fields = msgspec.structs.fields(sampling)
    return all(field.name in ALIKE or getattr(sampling, field.name) == field.default for field in fields)
