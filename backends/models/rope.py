"""Rotary position embedding: frequencies of the variants that checkpoints of the Llama family name, as transformers
computes them. Positions beyond what a `dynamic` checkpoint was trained on are not served, and up to there it is plain."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec
import torch
from torch import Tensor

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """`factor` stretches positions (linear) or long wavelengths (llama3, yarn); `magnitude` multiplies q and k (yarn)."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    whole_dimensions: bool = True
    magnitude: float = 1.0


def read_rope(config: Mapping[str, Any]) -> tuple[Rope, list[str]]:
    """And what of it is not served. Both spellings: `rope_parameters`, and before it `rope_theta` with `rope_scaling`."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = found.get("rope_type", found.get("type", "default"))
    kinds = get_args(RopeKind)
    if kind not in kinds:
        return Rope(), [f"rope type {kind} is not served, only {', '.join(kinds)} are"]
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        return Rope(), [f"partial_rotary_factor {found['partial_rotary_factor']} is not served"]
    original = int(
        found.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        or config.get("max_position_embeddings", 8192)
    )
    factor = float(found.get("factor") or config.get("max_position_embeddings", original) / original)
    return Rope(
        kind=kind,
        theta=float(found.get("rope_theta", config.get("rope_theta", 10_000.0))),
        factor=factor,
        low_freq_factor=float(found.get("low_freq_factor", 1.0)),
        high_freq_factor=float(found.get("high_freq_factor", 4.0)),
        original_positions=original,
        beta_fast=float(found.get("beta_fast") or 32),
        beta_slow=float(found.get("beta_slow") or 1),
        whole_dimensions=bool(found.get("truncate", True)),
        magnitude=_magnitude(found, factor) if kind == "yarn" else 1.0,
    ), []


def _magnitude(found: Mapping[str, Any], factor: float) -> float:
    """Of YaRN (arXiv 2309.00071, equation 15), with DeepSeek's two multipliers where they are given."""
    if found.get("attention_factor") is not None:
        return float(found["attention_factor"])

    def scaled(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    mine, all_dimensions = found.get("mscale"), found.get("mscale_all_dim")
    return scaled(mine) / scaled(all_dimensions) if mine and all_dimensions else scaled(1.0)


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians a position, (head_dim / 2,) float32."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    match rope.kind:
        case "default" | "dynamic":
            return plain
        case "linear":
            return plain / rope.factor
        case "yarn":
            return _yarn(rope, plain, head_dim)
        case "llama3":
            return _llama3(rope, plain)


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between are blended (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    cycles = rope.original_positions / wavelength
    blend = ((cycles - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn(rope: Rope, plain: Tensor, head_dim: int) -> Tensor:
    """Pairs that turn more than `beta_fast` times over the original context are kept, fewer than `beta_slow` stretched,
    those between are blended by their number."""

    def pair(turns: float) -> float:
        return head_dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.whole_dimensions:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / max(last - first, 1e-3)).clamp(0, 1)
    return stretched * plain / rope.factor + (1 - stretched) * plain


def rotations(rope: Rope, *, head_dim: int, positions: int) -> Tensor:
    """Complex numbers, (positions, 1, head_dim / 2): position p turns pair j of a head by p * frequency j."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_dim)
    return torch.polar(torch.full_like(angles, rope.magnitude), angles)[:, None]


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Reorders output rows of a q or k projection so that pairs are neighbours, (x0, x_half, x1, x_half+1, ...).

    Checkpoints pair element j with j + head_dim / 2. Scores are the same in any order that q and k share, and neighbours
    are one complex number.
    """
    heads = rows.shape[0] // head_dim
    paired = rows.view(heads, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2)
    return paired.reshape(rows.shape)
