"""Chooses tokens from logits. The draw depends on (seed, position) alone, never on who else is in the batch."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backends.wire import Sampling


class Ask(NamedTuple):
    """How to choose one token: at `position` of its sequence."""

    sampling: Sampling
    seed: int
    position: int


class Sampled(NamedTuple):
    """`logprob`, `top` (id, logprob) and `confidence` are of the model's own distribution, before temperature, if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    confidence: float = 1.0


def uniform(seed: int, position: int) -> float:
    """In [0, 1), with 53 random bits."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(logits: Tensor, asks: Sequence[Ask]) -> list[Sampled]:
    """`logits` (len(asks), vocabulary) float32, to one token each."""
    tokens = logits.argmax(-1).tolist()
    for row, ask in enumerate(asks):
        if ask.sampling.temperature > 0:
            tokens[row] = _draw(logits[row], ask)
    sampled = [_described(logits[row], token, ask) for row, (token, ask) in enumerate(zip(tokens, asks, strict=True))]
    if rows := [row for row, ask in enumerate(asks) if ask.sampling.confidence]:
        asked = logits[rows]
        chosen = asked.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits.device)).squeeze(1)
        for row, confidence in zip(rows, (chosen - asked.logsumexp(-1)).exp().tolist(), strict=True):
            sampled[row] = sampled[row]._replace(confidence=confidence)
    return sampled


def _draw(logits: Tensor, ask: Ask) -> int:
    """Inverts the cumulative distribution of what top-k and top-p leave, most likely first (the first is always left)."""
    sampling = ask.sampling
    # Behind the best logit, which is then 0: however small the temperature, dividing makes no NaN of it.
    probabilities = torch.softmax((logits.double() - logits.max()) / sampling.temperature, -1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    reached = ordered.cumsum(0)
    left = len(ids) if not sampling.top_k else min(sampling.top_k, len(ids))
    if sampling.top_p < 1:
        left = min(left, int((reached[:left] < sampling.top_p * reached[left - 1]).sum()) + 1)
    goal = uniform(ask.seed, ask.position) * reached[left - 1]
    chosen = min(int(torch.searchsorted(reached[:left], goal, right=True)), left - 1)
    return int(ids[chosen])


def _described(logits: Tensor, token: int, ask: Ask) -> Sampled:
    count = ask.sampling.top_logprobs
    if count is None:
        return Sampled(token)
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return Sampled(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
