"""One labelled outcome: a conversation up to the answer, and the quality of each tier's answer."""

import hashlib
from collections.abc import Sequence

import msgspec

from gateway.request import Message, Tool


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Labels by tier. `outcomes` are 1 and 0 for right and wrong, or scores. `confidence` is the lowest probability among the
    first tokens of a tier's answer. `tenant` is empty for an outcome of the operator's file."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    outcomes: dict[str, float]
    confidence: dict[str, float] = {}
    tenant: str = ""

    @property
    def question(self) -> str:
        """Return the last user message."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")


class TrainingError(ValueError):
    """The outcomes cannot be used for training; the message has the reason."""


def as_good(outcome: Outcome, tier: str, top: str) -> bool:
    """Return whether a tier is good enough: it is right, or the top tier is wrong too. Scores are compared with the top
    tier's."""
    return outcome.outcomes[tier] >= outcome.outcomes[top]


def fingerprint(outcomes: Sequence[Outcome]) -> str:
    """Return a hash of the rows and their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in outcomes:
        digest.update(msgspec.json.encode(row, order="sorted") + b"\n")
    return f"blake2b-16:{digest.hexdigest()}"


def check_outcomes(outcomes: Sequence[Outcome], tiers: Sequence[str], *, at_least: int) -> None:
    """Raise TrainingError if there are too few outcomes or one lacks a tier."""
    if len(tiers) < 2:
        raise TrainingError(f"needs at least two tiers to compare, got {list(tiers)}")
    if len(outcomes) < at_least:
        raise TrainingError(f"needs at least {at_least} outcomes, got {len(outcomes)}")
    for number, row in enumerate(outcomes, 1):
        if missing := [tier for tier in tiers if tier not in row.outcomes]:
            raise TrainingError(f"outcome {number} has no label of {', '.join(missing)}")
