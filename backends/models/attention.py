"""Paged KV and attention over it.

A slot holds one token's K heads, then its V heads; a page is `page_size` neighbouring slots. Pages that follow one another
in memory are read in place, others are gathered first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.models.paged_kv import PagedKV


class DecodeSpan(NamedTuple):
    """One-token sequences of about one length, in rows `start` to `stop`.

    `mask` (stop - start, 1, 1, slots) hides what each one does not see; None where nothing is.
    """

    start: int
    stop: int
    where: slice | Tensor
    slots: int
    mask: Tensor | None


class PrefillSpan(NamedTuple):
    """A stretch of one sequence: rows `start` to `stop`. `context` counts its own tokens too.

    `mask` (stop - start, context) is None where the chunk begins its sequence: then it is plainly causal.
    """

    start: int
    stop: int
    where: slice | Tensor
    context: int
    mask: Tensor | None


Spans = tuple[DecodeSpan | PrefillSpan, ...]


class AttentionParams(NamedTuple):
    """How a layer weighs: `scale` of the scores (None: 1 / sqrt(head_dim)), `softcap` that bends them (0: none)."""

    scale: float | None = None
    softcap: float = 0.0


PLAIN = AttentionParams()


def attend(
    kv: PagedKV, layer: int, q: Tensor, spans: Sequence[DecodeSpan | PrefillSpan], params: AttentionParams = PLAIN
) -> Tensor:
    """`q` (tokens, heads, head_dim) to the same shape; the spans cover all tokens in order."""
    if len(spans) == 1:
        return _attend_span(kv, layer, q, spans[0], params)
    return torch.cat([_attend_span(kv, layer, q[span.start : span.stop], span, params) for span in spans])


def _attend_span(kv: PagedKV, layer: int, q: Tensor, span: DecodeSpan | PrefillSpan, params: AttentionParams) -> Tensor:
    attended = _attend_rows if isinstance(span, DecodeSpan) else _attend_chunk
    return attended(kv, layer, q, span, params)  # type: ignore[arg-type]


def _attend_rows(kv: PagedKV, layer: int, q: Tensor, decodes: DecodeSpan, params: AttentionParams) -> Tensor:
    """Query heads that share a KV head are that head's query rows, so nothing is repeated."""
    k, v = kv.read(layer, decodes.where, len(q), decodes.slots)
    grouped = q.reshape(len(q), kv.kv_heads, -1, q.shape[-1])
    if params.softcap:
        return _capped(grouped, k, v, decodes.mask, params).reshape(q.shape)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=decodes.mask, scale=params.scale).reshape(q.shape)


def _attend_chunk(kv: PagedKV, layer: int, q: Tensor, prefill: PrefillSpan, params: AttentionParams) -> Tensor:
    k, v = kv.read(layer, prefill.where, 1, prefill.context)
    many = q.transpose(0, 1)[None]
    gqa = q.shape[1] != kv.kv_heads
    if params.softcap:
        shared = q.shape[1] // kv.kv_heads
        seen = prefill.mask
        if seen is None:
            seen = hide(torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu_(1), q.dtype)
        mixed = _capped(many, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), seen, params)
        return mixed[0].transpose(0, 1)
    mixed = F.scaled_dot_product_attention(
        many, k, v, attn_mask=prefill.mask, is_causal=prefill.mask is None, enable_gqa=gqa, scale=params.scale
    )
    return mixed[0].transpose(0, 1)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, params: AttentionParams) -> Tensor:
    """Scores bent into -softcap to softcap before the mask (Gemma 2)."""
    scale = params.scale or 1 / math.sqrt(q.shape[-1])
    scores = (q.float() @ k.float().transpose(-1, -2)).mul_(scale / params.softcap).tanh_().mul_(params.softcap)
    if mask is not None:
        scores = scores + mask
    return (torch.softmax(scores, -1) @ v.float()).to(q.dtype)


def hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask of a boolean one."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
