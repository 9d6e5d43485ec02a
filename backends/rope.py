"""Rotary position embedding: frequencies of the variants that Llama checkpoints name, as transformers computes them."""

import math
from typing import Literal

import msgspec
import torch
from torch import Tensor

RopeKind = Literal["default", "linear", "llama3"]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """`factor` stretches positions (linear) or long wavelengths (llama3)."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians a position, (head_dim / 2,) float32."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    return _llama3(rope, plain)


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between are blended (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    cycles = rope.original_positions / wavelength
    blend = ((cycles - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def rotations(rope: Rope, *, head_dim: int, positions: int) -> Tensor:
    """Unit complex numbers, (positions, 1, head_dim / 2): position p turns pair j of a head by p * frequency j."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_dim)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Reorders output rows of a q or k projection so that pairs are neighbours, (x0, x_half, x1, x_half+1, ...).

    Checkpoints pair element j with j + head_dim / 2. Scores are the same in any order that q and k share, and neighbours
    are one complex number.
    """
    heads = rows.shape[0] // head_dim
    paired = rows.view(heads, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2)
    return paired.reshape(rows.shape)
