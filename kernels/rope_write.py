"""What comes between the q, k, v product and attention, in one pass: norms of q and k, rotation, and K and V into their slots.

Letters: T tokens, H query heads, K key/value heads, D head width, N slots.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rope_write_kernel(
    qkv_ptr, norm_ptr, turns_ptr, positions_ptr, slots_ptr, pages_ptr, scales_ptr, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, NORMED: tl.constexpr, QUANTIZED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token. Pairs are neighbours: (x0, x1) turns by (cos, sin) of its frequency."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = tl.arange(0, BLOCK)
    here = pairs < WIDTH // 2
    start = (token * (HEADS + 2 * KV_HEADS) + head) * WIDTH
    even = tl.load(qkv_ptr + start + 2 * pairs, mask=here, other=0.0).to(tl.float32)
    odd = tl.load(qkv_ptr + start + 2 * pairs + 1, mask=here, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        if NORMED:
            shrink = 1 / tl.sqrt(tl.sum(even * even + odd * odd, 0) / WIDTH + eps)
            even = even * shrink * tl.load(norm_ptr + head * WIDTH + 2 * pairs, mask=here, other=0.0).to(tl.float32)
            odd = odd * shrink * tl.load(norm_ptr + head * WIDTH + 2 * pairs + 1, mask=here, other=0.0).to(tl.float32)
        turn = tl.load(positions_ptr + token).to(tl.int64) * WIDTH + 2 * pairs
        cosine = tl.load(turns_ptr + turn, mask=here, other=0.0)
        sine = tl.load(turns_ptr + turn + 1, mask=here, other=0.0)
        turned = even * cosine - odd * sine
        odd = even * sine + odd * cosine
        even = turned
        tl.store(qkv_ptr + start + 2 * pairs, even.to(qkv_ptr.dtype.element_ty), mask=here)
        tl.store(qkv_ptr + start + 2 * pairs + 1, odd.to(qkv_ptr.dtype.element_ty), mask=here)
    if head >= HEADS:
        slot = tl.load(slots_ptr + token).to(tl.int64) * 2 * KV_HEADS + head - HEADS
        if QUANTIZED:
            step = tl.maximum(tl.maximum(tl.max(tl.abs(even), 0), tl.max(tl.abs(odd), 0)) / 127, 1e-10)
            tl.store(scales_ptr + slot, step)
            even, odd = even / step, odd / step
            even = tl.floor(tl.abs(even) + 0.5) * tl.where(even < 0, -1.0, 1.0)
            odd = tl.floor(tl.abs(odd) + 0.5) * tl.where(odd < 0, -1.0, 1.0)
        tl.store(pages_ptr + slot * WIDTH + 2 * pairs, even.to(pages_ptr.dtype.element_ty), mask=here)
        tl.store(pages_ptr + slot * WIDTH + 2 * pairs + 1, odd.to(pages_ptr.dtype.element_ty), mask=here)


def rope_write(
    qkv: Tensor,
    turns: Tensor,
    positions: Tensor,
    slots: Tensor,
    pages: Tensor,
    *,
    heads: int,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In place, and returned: `qkv` (T, H + 2K, D) with q and k turned, and `pages` (N, 2K, D) with k and v in `slots` (T,).

    `turns` (positions, D / 2, 2) are cosines and sines, `norm` (H + K, D) weights of an RMS norm of each head; int8 `pages`
    have `kv_scales` (N, 2K).
    """
    tokens, all_heads, width = qkv.shape
    _rope_write_kernel[(tokens, all_heads)](
        qkv, qkv if norm is None else norm, turns, positions, slots, pages, pages if kv_scales is None else kv_scales, eps,
        HEADS=heads, KV_HEADS=(all_heads - heads) // 2, WIDTH=width, NORMED=norm is not None,
        QUANTIZED=kv_scales is not None, BLOCK=triton.next_power_of_2(max(width // 2, 1)),
    )  # fmt: skip
    return qkv, pages
