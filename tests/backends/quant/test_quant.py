"""Quantized layouts are read as they are meant: each against element by element arithmetic, on whole checkpoints."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from backends.models.checkpoint import Checkpoint
from backends.runners.native_library import Library
from tests.backends.conftest import MakeCheckpoint
from tests.backends.layouts import Made, awq, gptq, packed_int, quantize, scaled
from tests.backends.models.test_llama import all_logits, load

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
FP8 = torch.float8_e4m3fn


def compressed(form: str, kind: str, bits: int, strategy: str, *, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, **more}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def rows(make: Callable[..., Made], **options: Any) -> Callable[..., Made]:
    return lambda rng, out, width: make(rng, out, width, scale_shape=(out, 1), **options)


def blocks(make: Callable[..., Made], name: str, **options: Any) -> Callable[..., Made]:
    def made(rng: np.random.Generator, out: int, width: int) -> Made:
        found = make(rng, out, width, scale_shape=(-(-out // 32), -(-width // 32)), **options)
        return Made({name if part == "weight_scale" else part: one for part, one in found.tensors.items()}, found.dense)

    return made


LAYOUTS: dict[str, tuple[dict[str, Any], Callable[..., Made]]] = {
    "gptq-v1": (GPTQ, partial(gptq, version=1, bits=4, act_order=False)),
    "gptq-v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, partial(gptq, version=2, bits=4, act_order=False)),
    "gptq-act-order": ({**GPTQ, "desc_act": True}, partial(gptq, version=1, bits=4, act_order=True)),
    "gptq-8": ({**GPTQ, "bits": 8}, partial(gptq, version=1, bits=8, act_order=False)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, awq),
    "packed-int4": (compressed("pack-quantized", "int", 4, "group"), partial(packed_int, bits=4, symmetric=True)),
    "packed-int4-zeros": (
        compressed("pack-quantized", "int", 4, "group", symmetric=False),
        partial(packed_int, bits=4, symmetric=False),
    ),
    "packed-int8": (compressed("pack-quantized", "int", 8, "group"), partial(packed_int, bits=8, symmetric=True)),
    "int8": (compressed("int-quantized", "int", 8, "channel"), rows(scaled, dtype=torch.int8)),
    "fp8": (compressed("float-quantized", "float", 8, "channel"), rows(scaled, dtype=FP8)),
    "fp8-tensor": (compressed("float-quantized", "float", 8, "tensor"), partial(scaled, dtype=FP8, scale_shape=(1,))),
    "fp8-block": (
        compressed("float-quantized", "float", 8, "block", block_structure=[32, 32]),
        blocks(scaled, "weight_scale", dtype=FP8),
    ),
    "block-fp8": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, blocks(scaled, "weight_scale_inv", dtype=FP8)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantized_checkpoint_is_served_as_its_dequantized_twin(
    library: Library | None, make_checkpoint: MakeCheckpoint, layout: str
) -> None:
    config, make = LAYOUTS[layout]
    if layout.startswith("packed"):
        pytest.importorskip("compressed_tensors")
    directory = make_checkpoint()
    rng = np.random.default_rng(0)
    twin = quantize(directory, config, partial(make, rng))
    checkpoint, plain = Checkpoint(directory), Checkpoint(twin)
    for module in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        found, expected = checkpoint.weight(module).dense(torch.float32), plain.weight(module).dense(torch.float32)
        torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    ids = random.Random(4).choices(range(320), k=30)
    expected = all_logits(load(twin, library), library, ids)
    torch.testing.assert_close(all_logits(load(directory, library), library, ids), expected, atol=1e-3, rtol=1e-4)
    served = load(directory, library, linear="auto")
    torch.testing.assert_close(all_logits(served, library, ids), expected, atol=1e-3 if layout != "int8" else 10.0, rtol=1e-4)
