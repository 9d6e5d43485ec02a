"""Quantized checkpoints in the layouts that others write, and what they mean, both straight from the layouts' definitions.

Everything is spelled element by element and shares no code with the readers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]
"""Nibble i of a word holds output AWQ_PLACES[i] of its eight."""


class Made(NamedTuple):
    """The tensors of a module without their common prefix, and the matrix (out, in) that they mean."""

    tensors: dict[str, Tensor]
    dense: Tensor


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values along the last axis, the lowest bits first."""
    per_word = 32 // bits
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % per_word)])
    packed = np.zeros((*padded.shape[:-1], padded.shape[-1] // per_word), np.uint32)
    for position in range(padded.shape[-1]):
        packed[..., position // per_word] |= padded[..., position].astype(np.uint32) << (position % per_word * bits)
    return packed.view(np.int32)


def drawn(rng: np.random.Generator, *shape: int, bits: int) -> np.ndarray:
    return rng.integers(0, 1 << bits, shape)


def means(values: np.ndarray, zero: np.ndarray, scale: np.ndarray, group_of: np.ndarray) -> Tensor:
    """(out, in) from (out, in) values, (out, groups) zeros and scales, and the group of each column."""
    dense = np.empty(values.shape, np.float64)
    for column, group in enumerate(group_of):
        dense[:, column] = (values[:, column] - zero[:, group]) * scale[:, group].astype(np.float64)
    return torch.from_numpy(dense).float()


def scales(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.01, 0.05, shape).astype(np.float16)


def gptq(rng: np.random.Generator, out: int, width: int, *, version: int, bits: int, act_order: bool) -> Made:
    group = 32
    values, zero = drawn(rng, out, width, bits=bits), rng.integers(1, 1 << bits, (out, width // group))
    scale, group_of = scales(rng, out, width // group), np.arange(width) // group
    if act_order:
        group_of = rng.permutation(group_of)
    stored = zero - 1 if version == 1 else zero
    tensors = {
        "qweight": torch.from_numpy(words(values, bits).T.copy()),
        "qzeros": torch.from_numpy(words(stored.T, bits)),
        "scales": torch.from_numpy(scale.T.copy()),
        "g_idx": torch.from_numpy(group_of.astype(np.int32)),
    }
    # The packing runs along the input: (out, in / 8) transposed is (in / 8, out).
    return Made(tensors, means(values, zero, scale, group_of))


def awq(rng: np.random.Generator, out: int, width: int) -> Made:
    group = 32
    values, zero = drawn(rng, out, width, bits=4), drawn(rng, out, width // group, bits=4)
    scale = scales(rng, out, width // group)

    def packed(by_output: np.ndarray) -> Tensor:
        word = np.zeros((by_output.shape[0], out // 8), np.uint32)
        for nibble, place in enumerate(AWQ_PLACES):
            word |= by_output[:, place::8].astype(np.uint32) << (4 * nibble)
        return torch.from_numpy(word.view(np.int32).copy())

    tensors = {"qweight": packed(values.T), "qzeros": packed(zero.T), "scales": torch.from_numpy(scale.T.copy())}
    return Made(tensors, means(values, zero, scale, np.arange(width) // group))


def packed_int(rng: np.random.Generator, out: int, width: int, *, bits: int, symmetric: bool) -> Made:
    """compressed-tensors' own packing where it is installed, so that the layout is theirs."""
    from compressed_tensors.compressors import pack_to_int32

    group, half = 32, 1 << (bits - 1)
    values = drawn(rng, out, width, bits=bits) - half
    zero = np.zeros((out, width // group), np.int64) if symmetric else drawn(rng, out, width // group, bits=bits) - half
    scale = scales(rng, out, width // group)
    tensors = {
        "weight_packed": pack_to_int32(torch.from_numpy(values).to(torch.int8), bits),
        "weight_scale": torch.from_numpy(scale),
        "weight_shape": torch.tensor([out, width]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_to_int32(torch.from_numpy(zero).to(torch.int8), bits, packed_dim=0)
    return Made(tensors, means(values, zero, scale, np.arange(width) // group))


def scaled(rng: np.random.Generator, out: int, width: int, *, dtype: torch.dtype, scale_shape: tuple[int, ...]) -> Made:
    """Values in int8 or fp8 beside one scale for all, one a row, or one a block."""
    if dtype is torch.int8:
        values = torch.from_numpy(rng.integers(-127, 128, (out, width))).to(torch.int8)
    else:
        values = torch.from_numpy(rng.normal(0, 20, (out, width))).to(dtype)
    scale = torch.from_numpy(rng.uniform(0.001, 0.01, scale_shape)).to(torch.bfloat16)
    tall, wide = (1, 1) if len(scale_shape) < 2 else (-(-out // scale_shape[0]), -(-width // scale_shape[1]))
    dense = torch.empty(out, width)
    for row in range(out):
        for column in range(width):
            one = scale.flatten()[0] if len(scale_shape) < 2 else scale[row // tall, column // wide]
            dense[row, column] = values[row, column].float() * one.float()
    return Made({"weight": values, "weight_scale": scale}, dense)


def quantize(directory: Path, config: dict[str, Any], make: Callable[[int, int], Made]) -> Path:
    """Turns a plain checkpoint into a quantized one; returns its plain twin beside it."""
    weights = load_file(directory / "model.safetensors")
    twin = directory / "twin"
    twin.mkdir()
    plain = dict(weights)
    for name in [name for name in weights if name.endswith("proj.weight")]:
        module = name.removesuffix(".weight")
        made = make(*weights.pop(name).shape)
        weights |= {f"{module}.{part}": tensor.contiguous() for part, tensor in made.tensors.items()}
        plain[name] = made.dense
    save_file(weights, directory / "model.safetensors")
    save_file(plain, twin / "model.safetensors")
    original = json.loads((directory / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(original))
    (directory / "config.json").write_text(json.dumps({**original, "quantization_config": config}))
    return twin
