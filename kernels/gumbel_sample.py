"""Sampling in one pass: the best of logit / temperature + Gumbel noise is a draw from the softmax.

The noise is a hash of (seed, position, token), so that a draw depends on nothing else: not on the batch, not on the order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
FIRST, SECOND = tl.constexpr(0x7FEB352D), tl.constexpr(0x846CA68B)
"""Multipliers of a 32-bit mixing hash."""


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x ^ (x >> 16)


@triton.jit
def _gumbel_sample_kernel(logits_ptr, temperature_ptr, seeds_ptr, positions_ptr, out_ptr, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    seed = tl.load(seeds_ptr + row).to(tl.uint64)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    key = _mixed(_mixed(_mixed(low) ^ high) ^ tl.load(positions_ptr + row).to(tl.uint32))
    best, chosen = float("-inf"), 0
    for start in range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        score = tl.load(logits_ptr + row * vocabulary + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
        if temperature > 0:
            noise = (_mixed(key ^ _mixed(token.to(tl.uint32))) >> 8).to(tl.float32) * (1 / 16777216) + (1 / 33554432)
            score = score / temperature - tl.log(-tl.log(noise))
        peak = tl.max(score, 0)
        if peak > best:
            chosen = start + tl.argmax(score, 0)
            best = peak
    tl.store(out_ptr + row, chosen)


def gumbel_sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """`logits` (rows, vocabulary) to a token each (rows,) int64; temperature 0 is greedy. `seeds` int64, `positions` int64."""
    out = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    _gumbel_sample_kernel[(len(logits),)](
        logits.contiguous(), temperatures, seeds, positions, out, logits.shape[1], BLOCK=BLOCK
    )
    return out
