"""Paged KV and attention over it.

A slot holds one token's K heads, then its V heads; a page is `page_size` neighbouring slots. Pages that follow one another
in memory are read in place, others are gathered first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rows(NamedTuple):
    """One-token sequences of about one length, in rows `start` to `stop`.

    `mask` (stop - start, 1, 1, slots) hides what is past each one's end; None where nothing is.
    """

    start: int
    stop: int
    where: slice | Tensor
    slots: int
    mask: Tensor | None


class Chunk(NamedTuple):
    """A stretch of one sequence: rows `start` to `stop`. `context` counts its own tokens too.

    `mask` (stop - start, context) is None where the chunk begins its sequence: then it is plainly causal.
    """

    start: int
    stop: int
    where: slice | Tensor
    context: int
    mask: Tensor | None


class PagedKV:
    """(layers, pages, page_size, 2 * kv_heads, head_dim), all zero at first: masked slots are read and must be finite."""

    def __init__(
        self, *, layers: int, num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (layers, num_pages, page_size, 2 * kv_heads, head_dim)
        pages = torch.zeros(shape, dtype=dtype, device=device)
        self.page_size, self.kv_heads = page_size, kv_heads
        self._pages = list(pages.unbind(0))
        self._slots = list(pages.view(layers, num_pages * page_size, 2 * kv_heads, head_dim).unbind(0))

    def write(self, layer: int, slots: Tensor, kv: Tensor) -> None:
        """`kv` (rows, 2 * kv_heads, head_dim) into `slots` (rows,)."""
        self._slots[layer].index_copy_(0, slots, kv)

    def read(self, layer: int, where: slice | Tensor, sequences: int, slots: int) -> tuple[Tensor, Tensor]:
        """K and V of `sequences`, each (sequences, kv_heads, slots, head_dim)."""
        found = self._slots[layer][where] if isinstance(where, slice) else self._pages[layer].index_select(0, where)
        kv = found.view(sequences, -1, 2 * self.kv_heads, found.shape[-1])[:, :slots].transpose(1, 2)
        return kv[:, : self.kv_heads], kv[:, self.kv_heads :]

    def where(self, pages: Sequence[int], slots: int) -> slice | Tensor:
        """How to read the first `slots` slots of one sequence."""
        first = pages[0]
        if pages[-1] - first == len(pages) - 1 and list(pages) == list(range(first, first + len(pages))):
            return slice(first * self.page_size, first * self.page_size + slots)
        return torch.tensor(pages, device=self._slots[0].device)


def attend(kv: PagedKV, layer: int, q: Tensor, spans: Sequence[Rows | Chunk]) -> Tensor:
    """`q` (tokens, heads, head_dim) to the same shape; the spans cover all tokens in order."""
    if len(spans) == 1:
        return _attend_span(kv, layer, q, spans[0])
    return torch.cat([_attend_span(kv, layer, q[span.start : span.stop], span) for span in spans])


def _attend_span(kv: PagedKV, layer: int, q: Tensor, span: Rows | Chunk) -> Tensor:
    return _attend_rows(kv, layer, q, span) if isinstance(span, Rows) else _attend_chunk(kv, layer, q, span)


def _attend_rows(kv: PagedKV, layer: int, q: Tensor, rows: Rows) -> Tensor:
    """Query heads that share a KV head are that head's query rows, so nothing is repeated."""
    k, v = kv.read(layer, rows.where, len(q), rows.slots)
    grouped = q.reshape(len(q), kv.kv_heads, -1, q.shape[-1])
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=rows.mask).reshape(q.shape)


def _attend_chunk(kv: PagedKV, layer: int, q: Tensor, chunk: Chunk) -> Tensor:
    k, v = kv.read(layer, chunk.where, 1, chunk.context)
    many = q.transpose(0, 1)[None]
    gqa = q.shape[1] != kv.kv_heads
    mixed = F.scaled_dot_product_attention(many, k, v, attn_mask=chunk.mask, is_causal=chunk.mask is None, enable_gqa=gqa)
    return mixed[0].transpose(0, 1)


def hide_past_ends(lengths: Sequence[int], slots: int, *, dtype: torch.dtype, device: str) -> Tensor | None:
    """Additive mask (sequences, 1, 1, slots), or None where every sequence fills its slots."""
    if all(length == slots for length in lengths):
        return None
    ends = torch.tensor(lengths, device=device)[:, None]
    mask = torch.zeros(len(lengths), slots, dtype=dtype, device=device)
    return mask.masked_fill_(torch.arange(slots, device=device) >= ends, float("-inf"))[:, None, None]


def hide_future(tokens: int, context: int, *, dtype: torch.dtype, device: str) -> Tensor | None:
    """Additive mask (tokens, context): each of the last `tokens` positions sees up to itself. None when they are all."""
    if tokens == context:
        return None
    future = torch.ones(tokens, context, dtype=torch.bool, device=device).triu_(context - tokens + 1)
    return torch.zeros(tokens, context, dtype=dtype, device=device).masked_fill_(future, float("-inf"))
