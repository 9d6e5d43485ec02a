"""The gated activation: silu(gate) * up, from the one matrix that computes both."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = columns < WIDTH
    gate = tl.load(gate_up_ptr + row * 2 * WIDTH + columns, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * WIDTH + WIDTH + columns, mask=here, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + columns, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=here)


def silu_mul(gate_up: Tensor) -> Tensor:
    """(rows, 2 * width), gates first, to (rows, width)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](gate_up, out, WIDTH=width, BLOCK=BLOCK)
    return out
