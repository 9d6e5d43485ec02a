"""Chooses tokens from logits. A draw depends on (seed, position) alone, never on the rest of the batch."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from backends.engine.work import HELD, Sampled, SampleRequest
from backends.structured_output.grammar import Masks


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(
    logits: Tensor, requests: Sequence[SampleRequest], masks: Masks | None = None, best: Sequence[int] | None = None
) -> list[Sampled]:
    """Return a token that `masks` allow for each row of `logits` (len(requests), vocabulary), float32. `best` is their argmax,
    if known.
    """
    allowed = _adjusted(logits, requests)
    if masks is not None:
        allowed = masks.apply(allowed.clone() if allowed is logits else allowed)
    tokens = list(best) if best is not None and allowed is logits else allowed.argmax(-1).tolist()
    for row, request in enumerate(requests):
        if request.sampling.temperature > 0:
            tokens[row] = _draw(allowed[row], request)
        if request.matcher is not None:
            settled = request.matcher.settle(tokens[row])
            tokens[row] = HELD if settled is None else settled
    sampled = [
        _described(logits[row], token, request) for row, (token, request) in enumerate(zip(tokens, requests, strict=True))
    ]
    if rows := [row for row, request in enumerate(requests) if request.sampling.confidence and tokens[row] != HELD]:
        asked = logits[rows]
        chosen = asked.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits.device)).squeeze(1)
        for row, confidence in zip(rows, (chosen - asked.logsumexp(-1)).exp().tolist(), strict=True):
            sampled[row] = sampled[row]._replace(confidence=confidence)
    return sampled


def _adjusted(logits: Tensor, requests: Sequence[SampleRequest]) -> Tensor:
    """Return logits with penalties and biases, or the same tensor if no request has any."""
    adjusted = logits
    for row, (sampling, _, _, output_tokens, _) in enumerate(requests):
        if not (output_tokens or sampling.logit_bias):
            continue
        adjusted = logits.clone() if adjusted is logits else adjusted
        changes = dict(sampling.logit_bias)
        for token, count in Counter(output_tokens).items():
            penalty = sampling.presence_penalty + sampling.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
        ids = torch.tensor(list(changes), device=logits.device)
        adjusted[row, ids] += torch.tensor(list(changes.values()), device=logits.device, dtype=logits.dtype)
    return adjusted


def _draw(logits: Tensor, request: SampleRequest) -> int:
    """Sample by inversion of the cumulative distribution after top-k and top-p, most likely first. The first token always
    remains.
    """
    sampling = request.sampling
    # Relative to the best logit, which becomes 0: division by a small temperature then never yields NaN.
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
    if count is None or token == HELD:
        return Sampled(token)
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return Sampled(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
