"""Chooses tokens from logits. The draw depends on (seed, position) alone, never on who else is in the batch."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from backends.engine.work import Sampled, SampleRequest
from backends.structured_output.grammar import Masks


def uniform(seed: int, position: int) -> float:
    """In [0, 1), with 53 random bits."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(
    logits: Tensor, requests: Sequence[SampleRequest], masks: Masks | None = None, best: Sequence[int] | None = None
) -> list[Sampled]:
    """`logits` (len(asks), vocabulary) float32, to one token each that `masks` allow. `best` is their argmax, if known."""
    allowed = _adjusted(logits, requests)
    if masks is not None:
        allowed = masks.apply(allowed.clone() if allowed is logits else allowed)
    tokens = list(best) if best is not None and allowed is logits else allowed.argmax(-1).tolist()
    for row, request in enumerate(requests):
        if request.sampling.temperature > 0:
            tokens[row] = _draw(allowed[row], request)
        if request.matcher is not None:
            tokens[row] = request.matcher.settle(tokens[row])
    sampled = [
        _described(logits[row], token, request) for row, (token, request) in enumerate(zip(tokens, requests, strict=True))
    ]
    if rows := [row for row, request in enumerate(requests) if request.sampling.confidence]:
        asked = logits[rows]
        chosen = asked.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits.device)).squeeze(1)
        for row, confidence in zip(rows, (chosen - asked.logsumexp(-1)).exp().tolist(), strict=True):
            sampled[row] = sampled[row]._replace(confidence=confidence)
    return sampled


def _adjusted(logits: Tensor, requests: Sequence[SampleRequest]) -> Tensor:
    """With penalties and biases; the same tensor where nobody asked for any."""
    adjusted = logits
    for row, (sampling, _, _, said, _) in enumerate(requests):
        if not (said or sampling.logit_bias):
            continue
        adjusted = logits.clone() if adjusted is logits else adjusted
        changes = dict(sampling.logit_bias)
        for token, count in Counter(said).items():
            penalty = sampling.presence_penalty + sampling.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
        ids = torch.tensor(list(changes), device=logits.device)
        adjusted[row, ids] += torch.tensor(list(changes.values()), device=logits.device, dtype=logits.dtype)
    return adjusted


def _draw(logits: Tensor, request: SampleRequest) -> int:
    """Inverts the cumulative distribution of what top-k and top-p leave, most likely first (the first is always left)."""
    sampling = request.sampling
    # Behind the best logit, which is then 0: however small the temperature, dividing makes no NaN of it.
    probabilities = torch.softmax((logits.double() - logits.max()) / sampling.temperature, -1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    reached = ordered.cumsum(0)
    left = len(ids) if not sampling.top_k else min(sampling.top_k, len(ids))
    if sampling.top_p < 1:
        left = min(left, int((reached[:left] < sampling.top_p * reached[left - 1]).sum()) + 1)
    goal = uniform(request.seed, request.position) * reached[left - 1]
    chosen = min(int(torch.searchsorted(reached[:left], goal, right=True)), left - 1)
    return int(ids[chosen])


def _described(logits: Tensor, token: int, request: SampleRequest) -> Sampled:
    count = request.sampling.top_logprobs
    if count is None:
        return Sampled(token)
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return Sampled(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
