"""The residual stream's sum and its RMS norm in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, out_ptr, eps, WIDTH: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    here = columns < WIDTH
    x = tl.load(x_ptr + row * WIDTH + columns, mask=here, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(delta_ptr + row * WIDTH + columns, mask=here, other=0.0).to(tl.float32)
        tl.store(x_ptr + row * WIDTH + columns, x.to(x_ptr.dtype.element_ty), mask=here)
    shrink = 1 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    weight = tl.load(weight_ptr + columns, mask=here, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + columns, (x * shrink * weight).to(out_ptr.dtype.element_ty), mask=here)


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """`x` (rows, width) plus `delta`, in place, and its norm times `weight` (width,)."""
    rows, width = x.shape
    out = torch.empty_like(x)
    _add_norm_kernel[(rows,)](
        x, x if delta is None else delta, weight, out, eps,
        WIDTH=width, ADDS=delta is not None, BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    return x, out
