"""int4 weights in groups times 16-bit activations. Two values share a byte, the even column in its low half."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_OUT = 16, 64


@triton.jit
def _w4a16_kernel(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, out_ptr, rows, OUT: tl.constexpr, IN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A group at a time, its even and its odd columns as two products."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    half = tl.arange(0, GROUP // 2)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(IN // GROUP):
        at = group * (GROUP // 2) + half
        packed = tl.load(packed_ptr + n.to(tl.int64)[:, None] * (IN // 2) + at[None, :], mask=(n < OUT)[:, None], other=0)
        bits = packed.to(tl.int32)
        scale = tl.load(scale_ptr + n * (IN // GROUP) + group, mask=n < OUT, other=0.0)[:, None]
        zero = tl.load(zero_ptr + n * (IN // GROUP) + group, mask=n < OUT, other=0.0)[:, None]
        even = ((bits & 15).to(tl.float32) - zero) * scale
        odd = (((bits >> 4) & 15).to(tl.float32) - zero) * scale
        row = x_ptr + m.to(tl.int64)[:, None] * IN + 2 * at[None, :]
        x_even = tl.load(row, mask=(m < rows)[:, None], other=0.0)
        x_odd = tl.load(row + 1, mask=(m < rows)[:, None], other=0.0)
        total += tl.dot(x_even, tl.trans(even.to(x_even.dtype)), input_precision="ieee")
        total += tl.dot(x_odd, tl.trans(odd.to(x_odd.dtype)), input_precision="ieee")
    there = (m < rows)[:, None] & (n < OUT)[None, :]
    tl.store(out_ptr + m.to(tl.int64)[:, None] * OUT + n[None, :], total.to(out_ptr.dtype.element_ty), mask=there)


def w4a16(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`x` (rows, in) times the matrix (values - zero) * scale, to (rows, out): `packed` (out, in / 2) uint8, unsigned values;
    `scale` and `zero` (out, groups) float32; a group has 32 columns or more, a power of two."""
    rows, width = x.shape
    out = torch.empty(rows, packed.shape[0], dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(packed.shape[0], BLOCK_OUT))
    _w4a16_kernel[grid](
        x.contiguous(), packed, scale, zero, out, rows, OUT=packed.shape[0], IN=width, GROUP=width // scale.shape[1],
        BLOCK_M=BLOCK_ROWS, BLOCK_N=BLOCK_OUT,
    )  # fmt: skip
    return out
