"""One labelled outcome: a conversation up to the answer, and how well each tier answered it."""

import hashlib
from collections.abc import Sequence

import msgspec

from gateway.request import Message, Tool


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`outcomes` are 1 and 0 for right and wrong, or scores, by tier; `confidence` is the least probability among the first
    tokens of a tier's answer."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    outcomes: dict[str, float]
    confidence: dict[str, float] = {}

    @property
    def question(self) -> str:
        """What the user asked last."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")


class TrainingError(ValueError):
    """The outcomes cannot be trained on; the message says why."""


def as_good(outcome: Outcome, tier: str, top: str) -> bool:
    """Of right and wrong: right, or the top tier was wrong as well."""
    return outcome.outcomes[tier] >= outcome.outcomes[top]


def fingerprint(outcomes: Sequence[Outcome]) -> str:
    """Of the rows and their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in outcomes:
        digest.update(msgspec.json.encode(row, order="sorted") + b"\n")
    return f"blake2b-16:{digest.hexdigest()}"


def check_outcomes(outcomes: Sequence[Outcome], tiers: Sequence[str], *, at_least: int) -> None:
    """Raises TrainingError when they are too few or say nothing of a tier."""
    if len(tiers) < 2:
        raise TrainingError(f"needs two tiers or more to compare, got {list(tiers)}")
    if len(outcomes) < at_least:
        raise TrainingError(f"needs {at_least} outcomes or more, got {len(outcomes)}")
    for number, row in enumerate(outcomes, 1):
        if missing := [tier for tier in tiers if tier not in row.outcomes]:
            raise TrainingError(f"outcome {number} says nothing of {', '.join(missing)}")
