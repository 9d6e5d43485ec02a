"""Attention over paged KV for prompts behind a cached prefix and for decoding, in one kernel.

A program takes a block of one sequence's queries with all query heads of one KV head, and one of `splits` parts of what they
see; a second kernel joins the parts. The grid depends on the batch's size alone: a captured graph holds for any lengths.

Letters: T query tokens, S sequences, H query heads, K key/value heads, D head width, P pages, G = H / K.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_KEYS = 16, 32


@triton.jit
def _paged_attention_kernel(
    q_ptr, pages_ptr, scales_ptr, table_ptr, starts_ptr, contexts_ptr, out_ptr, peaks_ptr, sums_ptr, scale, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    WINDOW: tl.constexpr, QUANTIZED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    sequence, block = tl.program_id(0), tl.program_id(1)
    head, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    first = tl.load(starts_ptr + sequence)
    count = tl.load(starts_ptr + sequence + 1) - first
    if block * BLOCK_Q >= count:
        return
    context = tl.load(contexts_ptr + sequence)
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    token = block * BLOCK_Q + rows // GROUP
    live = (token < count) & (rows < BLOCK_Q * GROUP)
    position = context - count + token
    place = (first + token).to(tl.int64) * HEADS + head * GROUP + rows % GROUP
    here = live[:, None] & (columns < WIDTH)[None, :]
    q = tl.load(q_ptr + place[:, None] * WIDTH + columns[None, :], mask=here, other=0.0)
    high = tl.minimum(context - count + (block + 1) * BLOCK_Q, context)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(context - count + block * BLOCK_Q - WINDOW + 1, 0)
    part = tl.cdiv(tl.cdiv(high - low, SPLITS), BLOCK_N) * BLOCK_N
    begin = low + split * part
    end = tl.minimum(begin + part, high)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for at in range(begin, end, BLOCK_N):
        keys = at + tl.arange(0, BLOCK_N)
        page = tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=keys < end, other=0)
        slot = (page.to(tl.int64) * PAGE + keys % PAGE) * 2 * KV_HEADS + head
        there = (keys < end)[:, None] & (columns < WIDTH)[None, :]
        k = tl.load(pages_ptr + slot[:, None] * WIDTH + columns[None, :], mask=there, other=0.0).to(tl.float32)
        v = tl.load(pages_ptr + (slot + KV_HEADS)[:, None] * WIDTH + columns[None, :], mask=there, other=0.0).to(tl.float32)
        if QUANTIZED:
            k *= tl.load(scales_ptr + slot, mask=keys < end, other=0.0)[:, None]
            v *= tl.load(scales_ptr + slot + KV_HEADS, mask=keys < end, other=0.0)[:, None]
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        seen = (keys[None, :] <= position[:, None]) & (keys < end)[None, :] & live[:, None]
        if WINDOW > 0:
            seen = seen & (keys[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - base[:, None])
        kept = tl.exp(peak - base)
        total = total * kept + tl.sum(weights, 1)
        mixed = mixed * kept[:, None] + tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        peak = higher
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    partial = place * SPLITS + split
    tl.store(out_ptr + partial[:, None] * WIDTH + columns[None, :], mixed.to(out_ptr.dtype.element_ty), mask=here)
    if SPLITS > 1:
        tl.store(peaks_ptr + partial, peak, mask=live)
        tl.store(sums_ptr + partial, total, mask=live)


@triton.jit
def _join_kernel(
    parts_ptr, peaks_ptr, sums_ptr, out_ptr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row of a token's head: the parts weigh by how much of the softmax they hold."""
    row = tl.program_id(0).to(tl.int64)
    splits, columns = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    peaks = tl.load(peaks_ptr + row * SPLITS + splits)
    shares = tl.load(sums_ptr + row * SPLITS + splits) * tl.exp(peaks - tl.max(peaks, 0))
    there = (columns < WIDTH)[None, :]
    parts = tl.load(parts_ptr + (row * SPLITS + splits)[:, None] * WIDTH + columns[None, :], mask=there, other=0.0)
    joined = tl.sum(parts * (shares / tl.sum(shares, 0))[:, None], 0)
    tl.store(out_ptr + row * WIDTH + columns, joined.to(out_ptr.dtype.element_ty), mask=columns < WIDTH)


def paged_attention(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    starts: Tensor,
    contexts: Tensor,
    *,
    scale: float,
    longest: int,
    window: int = 0,
    splits: int = 1,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """`q` (T, H, D) to the same shape. `pages` (P, page_size, 2K, D): K heads, then V heads; int8 ones with `kv_scales`
    (P, page_size, 2K). `page_table` (S, most pages), `starts` (S + 1) rows of q, `contexts` (S) tokens with the new ones, all
    int32. `longest` is at least the most new tokens of a sequence; `splits` is a power of two."""
    tokens, heads, width = q.shape
    kv_heads = pages.shape[2] // 2
    group = heads // kv_heads
    block_q = max(1, BLOCK_ROWS // group)
    out = torch.empty_like(q)
    parts, peaks, sums = out, out, out
    if splits > 1:
        parts = torch.empty(tokens, heads, splits, width, dtype=torch.float32, device=q.device)
        peaks = torch.empty(tokens, heads, splits, dtype=torch.float32, device=q.device)
        sums = torch.empty_like(peaks)
    grid = (len(contexts), triton.cdiv(longest, block_q), kv_heads * splits)
    block_d = max(16, triton.next_power_of_2(width))
    _paged_attention_kernel[grid](
        q.contiguous(), pages, pages if kv_scales is None else kv_scales, page_table, starts, contexts, parts, peaks, sums,
        scale, page_table.stride(0), HEADS=heads, KV_HEADS=kv_heads, GROUP=group, WIDTH=width, PAGE=pages.shape[1],
        WINDOW=window, QUANTIZED=kv_scales is not None, SPLITS=splits, BLOCK_Q=block_q,
        BLOCK_M=max(BLOCK_ROWS, triton.next_power_of_2(block_q * group)), BLOCK_N=BLOCK_KEYS, BLOCK_D=block_d,
    )  # fmt: skip
    if splits > 1:
        _join_kernel[(tokens * heads,)](parts, peaks, sums, out, WIDTH=width, SPLITS=splits, BLOCK_D=block_d)
    return out
