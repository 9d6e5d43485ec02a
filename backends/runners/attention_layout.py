"""Order of a step's tokens in computation, and the positions that each span attends to.

With a window w, a token at position p attends to positions p - w + 1 to p. Window 0 means all positions up to p.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from backends.engine.work import Work
from backends.models.attention import DecodeSpan, PrefillSpan, Spans, hide
from backends.models.paged_kv import PagedKV


class Layout:
    """Builds the spans of every window that a model's layers use."""

    def __init__(self, kv: PagedKV, windows: Sequence[int], *, dtype: torch.dtype, device: str) -> None:
        self._size, self._windows, self._dtype, self._device = kv.page_size, tuple(dict.fromkeys(windows)), dtype, device

    def spans(self, work: Sequence[Work]) -> dict[int, Spans]:
        """Return the spans by window. `work` is sorted by `Work.layout`."""
        groups = [(is_chunk, list(group)) for (is_chunk, _), group in groupby(work, key=lambda one: one.layout)]
        return {window: tuple(self._spans(groups, window)) for window in self._windows}

    def _spans(self, groups: Sequence[tuple[bool, list[Work]]], window: int) -> list[DecodeSpan | PrefillSpan]:
        spans: list[DecodeSpan | PrefillSpan] = []
        for is_chunk, some in groups:
            at = spans[-1].stop if spans else 0
            if not is_chunk:
                spans.append(self._rows(some, at, window))
                continue
            for one in some:
                spans.append(self._chunk(one, at, window))
                at += one.num_tokens
        return spans

    def _rows(self, work: list[Work], at: int, window: int) -> DecodeSpan:
        ends = [one.start + 1 for one in work]
        firsts = [_first(one.start, window) for one in work]
        skipped = [first // self._size for first in firsts]
        lows = [first - skip * self._size for first, skip in zip(firsts, skipped, strict=True)]
        highs = [end - skip * self._size for end, skip in zip(ends, skipped, strict=True)]
        slots, where = max(highs), self._where(work, skipped, max(highs))
        if all(low == 0 for low in lows) and all(high == slots for high in highs):
            return DecodeSpan(at, at + len(work), where, slots, None)
        low, high = self._column(lows), self._column(highs)
        places = torch.arange(slots, device=self._device)
        mask = hide((places < low) | (places >= high), self._dtype)
        return DecodeSpan(at, at + len(work), where, slots, mask[:, None, None])

    def _chunk(self, one: Work, at: int, window: int) -> PrefillSpan:
        skip = _first(one.start, window) // self._size
        begin, end = one.start - skip * self._size, one.stop - skip * self._size
        where = self._where([one], [skip], end)
        if begin == 0 and (window == 0 or end <= window):
            return PrefillSpan(at, at + one.num_tokens, where, end, None)
        query = torch.arange(begin, end, device=self._device)[:, None]
        places = torch.arange(end, device=self._device)
        hidden = places > query
        if window:
            hidden |= places <= query - window
        return PrefillSpan(at, at + one.num_tokens, where, end, hide(hidden, self._dtype))

    def _where(self, work: Sequence[Work], skipped: Sequence[int], slots: int) -> slice | Tensor:
        """Return the index of `slots` slots of each sequence, from the page after the skipped ones."""
        width = -(-slots // self._size)
        pages = [one.sequence.pages[skip : skip + width] for one, skip in zip(work, skipped, strict=True)]
        if len(pages) == 1:
            first = pages[0][0]
            if pages[0] == list(range(first, first + width)):
                return slice(first * self._size, first * self._size + slots)
        padded = [(row + [0] * width)[:width] for row in pages]
        return torch.tensor(padded, device=self._device).flatten()

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)[:, None]


def _first(position: int, window: int) -> int:
    return max(0, position - window + 1) if window else 0
