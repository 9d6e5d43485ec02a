"""Turns planned work into one forward pass and its sampled tokens. Reads sequences, changes none."""

from collections.abc import Sequence as SequenceOf
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from backends.attention import Chunk, PagedKV, Rows, hide_future, hide_past_ends
from backends.grammar import MaskFiller
from backends.llama import Batch, Llama
from backends.sampler import Ask, Sampled, sample
from backends.scheduler import Work


class Runner(Protocol):
    def run(self, work: SequenceOf[Work]) -> list[Sampled | None]:
        """A token for each piece of work that samples, in the order given."""
        ...


class LlamaRunner:
    """Work is laid out with one-token sequences first, those of about one length together, so that padding stays small."""

    def __init__(self, model: Llama, kv: PagedKV, *, dtype: torch.dtype, device: str) -> None:
        self._model, self._kv, self._dtype, self._device = model, kv, dtype, device
        self._masks = MaskFiller(model.shape.vocab_size)

    @torch.inference_mode()
    def warm_up(self, tokens: int) -> None:
        """Runs a chunk of `tokens` and a single token through the model, so that the first request does not pay for set-up.

        Writes into the first pages, which nobody holds yet.
        """
        every = torch.arange(tokens, device=self._device)
        one = every[:1]
        chunk, row = Chunk(0, tokens, slice(0, tokens), tokens, None), Rows(0, 1, slice(0, 1), 1, None)
        self._model.forward(Batch(torch.zeros_like(every), every, every, (chunk,), one), self._kv)
        self._model.forward(Batch(one, one, one, (row,), one), self._kv)

    @torch.inference_mode()
    def run(self, work: SequenceOf[Work]) -> list[Sampled | None]:
        order = sorted(range(len(work)), key=lambda i: self._place(work[i])) if len(work) > 1 else [0]
        laid = [work[i] for i in order]
        sampling = [i for i, one in zip(order, laid, strict=True) if one.samples]
        asks = [_ask(work[i]) for i in sampling]
        masks = self._masks.fill([ask.matcher for ask in asks])
        logits = self._model.forward(self._batch(laid), self._kv)
        results: list[Sampled | None] = [None] * len(work)
        if logits is not None:
            for i, sampled in zip(sampling, sample(logits, asks, masks), strict=True):
                results[i] = sampled
        return results

    def _place(self, work: Work) -> tuple[bool, int]:
        return work.length > 1, len(work.sequence.pages).bit_length()

    def _batch(self, work: SequenceOf[Work]) -> Batch:
        size = self._kv.page_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: list[int] = []
        for sequence, start, count in work:
            stop = start + count
            ids += sequence.tokens[start:stop]
            positions += range(start, stop)
            slots += [sequence.pages[p // size] * size + p % size for p in range(start, stop)]
            if stop == len(sequence.tokens):
                last.append(len(ids) - 1)
        spans: list[Rows | Chunk] = []
        for (is_chunk, _), group in groupby(work, key=self._place):
            at = spans[-1].stop if spans else 0
            some = list(group)
            spans += self._chunks(some, at) if is_chunk else [self._rows(some, at)]
        return Batch(
            self._tensor(ids), self._tensor(positions), self._tensor(slots), tuple(spans), self._tensor(last) if last else None
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)

    def _rows(self, work: list[Work], at: int) -> Rows:
        lengths = [one.start + 1 for one in work]
        slots = max(lengths)
        where: slice | Tensor
        if len(work) == 1:
            where = self._kv.where(_pages(work[0], self._kv.page_size), slots)
        else:
            width = -(-slots // self._kv.page_size)
            padded = [(_pages(one, self._kv.page_size) + [0] * width)[:width] for one in work]
            where = torch.tensor(padded, device=self._device).flatten()
        return Rows(at, at + len(work), where, slots, hide_past_ends(lengths, slots, dtype=self._dtype, device=self._device))

    def _chunks(self, work: list[Work], at: int) -> list[Chunk]:
        chunks = []
        for one in work:
            context = one.start + one.length
            where = self._kv.where(_pages(one, self._kv.page_size), context)
            mask = hide_future(one.length, context, dtype=self._dtype, device=self._device)
            chunks.append(Chunk(at, at + one.length, where, context, mask))
            at += one.length
        return chunks


def _pages(work: Work, page_size: int) -> list[int]:
    """Those that hold the work's context."""
    return work.sequence.pages[: -(-(work.start + work.length) // page_size)]


def _ask(work: Work) -> Ask:
    sequence = work.sequence
    sampling = sequence.sampling
    penalized = sampling.presence_penalty or sampling.frequency_penalty
    said = sequence.tokens[sequence.num_prompt :] if penalized else ()
    return Ask(sampling, sequence.seed, len(sequence.tokens), said, sequence.matcher)
