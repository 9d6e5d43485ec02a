"""Which match is worth guessing by: every kind of evidence has a chance of its own, learned from all sequences.

Evidence is where a match was found and how many tokens agreed.
"""

from collections.abc import Callable
from typing import NamedTuple

from backends.engine.sequence import RequestSequence
from backends.spec_decode.draft_length import MAX_DRAFTS, SMOOTHING, best_count, saved
from backends.spec_decode.ngram import LONGEST, AnswerHistory, NgramMatch, own
from backends.spec_decode.state import AcceptanceRate, DraftCost, Evidence, Origin

LEARNING, FORGETTING = 0.05, 0.002


class Guess(NamedTuple):
    """`saves` is in seconds, expected."""

    evidence: Evidence
    tokens: tuple[int, ...]
    saves: float


class AcceptanceStats:
    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._history = AnswerHistory()
        origins: tuple[Origin, ...] = ("own", "said")
        self._chances: dict[Evidence, AcceptanceRate] = {
            (origin, n): AcceptanceRate() for origin in origins for n in range(1, LONGEST + 1)
        }
        self.search_s = 0.0
        """What looking takes, of one sequence."""

    def guess(self, sequence: RequestSequence, of: DraftCost) -> Guess | None:
        """What saves most, if anything does."""
        if not best_count(max(acceptance_rate.value for acceptance_rate in self._chances.values()), of):
            for acceptance_rate in self._chances.values():
                acceptance_rate.forget(FORGETTING)
            return None
        started_ns = self._clock_ns()
        found = self._best(sequence, of)
        self.search_s += SMOOTHING * ((self._clock_ns() - started_ns) / 1e9 - self.search_s)
        return found

    def _best(self, sequence: RequestSequence, of: DraftCost) -> Guess | None:
        tokens = sequence.tokens
        matches = (own(tokens, MAX_DRAFTS), self._history.find(sequence.salt, tokens, MAX_DRAFTS))
        guesses = [guess for match in matches if match and (guess := self._priced(match, of))]
        return max(guesses, key=lambda guess: guess.saves, default=None)

    def _priced(self, match: NgramMatch, of: DraftCost) -> Guess | None:
        acceptance_rate = self._chances[match.origin, match.length]
        count = min(best_count(acceptance_rate.value, of), len(match.tokens))
        if not count:
            acceptance_rate.forget(FORGETTING)
            return None
        return Guess((match.origin, match.length), match.tokens[:count], saved(acceptance_rate.value, of, count))

    def learn(self, evidence: Evidence, drafted: int, accepted: int) -> None:
        self._chances[evidence].learn(drafted, accepted, LEARNING)

    def finished(self, sequence: RequestSequence) -> None:
        """What it said may be said again by others of its tenant."""
        if sequence.num_output:
            self._history.add(sequence.salt, sequence.tokens, sequence.num_output)
