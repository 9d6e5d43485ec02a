"""What a sequence carries of speculative decoding. A leaf: nothing of the engine, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

HOPED = 0.6
"""Chance that a guessed token is right, before any was tried."""
LEARNING, FORGETTING = 0.15, 0.01

Origin = Literal["own", "said"]
Evidence = tuple[Origin, int]


class AcceptanceRate:
    """That a guessed token is right, from one source."""

    def __init__(self, hoped: float = HOPED) -> None:
        self.value = hoped

    def learn(self, drafted: int, accepted: int, rate: float = LEARNING) -> None:
        """Guesses behind the first wrong one say nothing."""
        for number in range(min(accepted + 1, drafted)):
            self.value += rate * ((number < accepted) - self.value)

    def forget(self, rate: float = FORGETTING) -> None:
        """What is no longer guessed for is tried again some time."""
        self.value += rate * (HOPED - self.value)


class DraftCost(NamedTuple):
    """Seconds, for one of the sequences that decode in a step: what a token costs without guesses, what a guess costs, and
    what the first one costs more than that."""

    token: float
    draft: float
    first: float


FREE = DraftCost(0.0, 0.0, 0.0)


@dataclass(slots=True)
class Guesses:
    """Of one sequence: whether it may be guessed for, and how often the draft model is right. Of the last step with guesses:
    what they are by, if not by the draft, their price, and how many sequences it had."""

    allowed: bool
    draft: AcceptanceRate
    evidence: Evidence | None = None
    draft_cost: DraftCost = FREE
    num_sequences: int = 1


@dataclass(slots=True)
class Drafted:
    """Up to position `computed` the draft has KV on `pages`; from `known` on it is that of the tokens it `told`."""

    pages: list[int]
    known: int
    computed: int
    told: list[int] = field(default_factory=list)

    def valid(self, tokens: Sequence[int], pages: Sequence[int]) -> int:
        """Positions whose KV is that of these tokens; 0 where the pages are others."""
        if pages[: len(self.pages)] != self.pages:
            return 0
        right = 0
        for told, said in zip(self.told, tokens[self.known :], strict=False):
            if told != said:
                break
            right += 1
        return min(self.computed, self.known + right)
