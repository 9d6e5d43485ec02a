"""How many guesses are worth it. Pure: costs come in as they were measured, and as often as guesses were right.

A guess costs its part of a step and saves a step's part for every token of it that the model says itself. Guess n counts only
if all before it are right.
"""

import msgspec

from backends.engine.step_cost_model import Cost
from backends.spec_decode.state import DraftCost
from backends.wire import Sampling

MAX_DRAFTS = 8
RARELY, SMOOTHING = 32, 0.05
HOPED_S = 1e-3
"""What looking saves, before anybody looked."""
MARGIN = 0.1
"""Part of a token's cost that guesses must promise to save: measured costs are not exact."""
ALIKE = frozenset({"max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "top_logprobs", "ignore_eos"})
"""Parameters that choose a token by its position alone. With any other one that is set, nothing is guessed."""


class ProposalGain:
    """Whether looking for guesses pays: what it saved lately, in seconds a sequence, against what looking takes, by the bits of
    the number of sequences. Where it does not, one step in RARELY looks all the same."""

    def __init__(self) -> None:
        self._saved: dict[int, float] = {}
        self._skipped: dict[int, int] = {}

    def is_worthwhile(self, num_sequences: int, looking_s: float) -> bool:
        size = num_sequences.bit_length()
        skipped = self._skipped.get(size, 0)
        if self._saved.get(size, HOPED_S) >= looking_s or skipped >= RARELY:
            self._skipped[size] = 0
            return True
        self._skipped[size] = skipped + 1
        return False

    def observe(self, num_sequences: int, saved_s: float) -> None:
        size = num_sequences.bit_length()
        self._saved[size] = (1.0 - SMOOTHING) * self._saved.get(size, HOPED_S) + SMOOTHING * saved_s


def draft_cost(cost: Cost, num_sequences: int, context: float, kv_bytes: int) -> DraftCost:
    """`kv_bytes` are those of one token; `context` is the mean of the sequences.

    With guesses a row becomes a chunk, which costs something of its own, and leaves its group: taken to be that of all, which
    goes on without it. The KV is read once, however many tokens see it.
    """
    seen = cost.mixed * context
    token = (cost.step + cost.group) / num_sequences + cost.row + seen + cost.kv_byte * context * kv_bytes
    left = cost.group if num_sequences == 1 else 0.0
    return DraftCost(token, cost.token + seen, max(0.0, cost.chunk + cost.token - cost.row - left))


def saved(chance: float, of: DraftCost, count: int) -> float:
    """Seconds that `count` guesses are expected to save, negative where they cost more."""
    total, right = -of.first, 1.0
    for _ in range(count):
        right *= chance
        total += right * of.token - of.draft
    return total


def best_count(chance: float, of: DraftCost, most: int = MAX_DRAFTS) -> int:
    """The number of guesses that saves most, 0 where none saves enough."""
    if chance * of.token <= of.draft:  # not even the first one pays for itself: what a full batch finds, for every sequence
        return 0
    total, right, best, best_at = -of.first, 1.0, 0.0, 0
    for count in range(1, most + 1):
        right *= chance
        total += right * of.token - of.draft
        if total > best:
            best, best_at = total, count
    return best_at if best > MARGIN * of.token else 0


def is_hopeless(of: DraftCost) -> bool:
    """Not even guesses that are sure to be right pay: what a full batch finds."""
    return MAX_DRAFTS * (of.token - of.draft) - of.first <= MARGIN * of.token


def may_guess(sampling: Sampling) -> bool:
    fields = msgspec.structs.fields(sampling)
    return all(field.name in ALIKE or getattr(sampling, field.name) == field.default for field in fields)
