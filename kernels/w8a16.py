"""int8 weights times 16-bit activations: a row of weights has one scale, which the sum is multiplied by."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_OUT, BLOCK_IN = 16, 64, 64


@triton.jit
def _w8a16_kernel(
    x_ptr, weight_ptr, scale_ptr, out_ptr, rows, OUT: tl.constexpr, IN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, IN, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m.to(tl.int64)[:, None] * IN + k[None, :], mask=(m < rows)[:, None] & (k < IN)[None, :], other=0.0)
        inside = (n < OUT)[:, None] & (k < IN)[None, :]
        weight = tl.load(weight_ptr + n.to(tl.int64)[:, None] * IN + k[None, :], mask=inside, other=0)
        total += tl.dot(x, tl.trans(weight.to(x.dtype)), input_precision="ieee")
    total *= tl.load(scale_ptr + n, mask=n < OUT, other=0.0)[None, :]
    there = (m < rows)[:, None] & (n < OUT)[None, :]
    tl.store(out_ptr + m.to(tl.int64)[:, None] * OUT + n[None, :], total.to(out_ptr.dtype.element_ty), mask=there)


def w8a16(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x` (rows, in) times `weight` (out, in) int8 with `scale` (out,) float32, to (rows, out)."""
    rows, width = x.shape
    out = torch.empty(rows, weight.shape[0], dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(weight.shape[0], BLOCK_OUT))
    _w8a16_kernel[grid](
        x.contiguous(), weight, scale, out, rows, OUT=weight.shape[0], IN=width,
        BLOCK_M=BLOCK_ROWS, BLOCK_N=BLOCK_OUT, BLOCK_K=BLOCK_IN,
    )  # fmt: skip
    return out
