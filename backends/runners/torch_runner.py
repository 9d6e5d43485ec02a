"""Runs planned work as one forward pass of torch operations and samples its tokens. Does not change sequences."""

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, cast

import torch
from torch import Tensor

from backends.engine.sequence import RequestSequence
from backends.engine.work import Sampled, SampleRequest, Work
from backends.models.attention import DecodeSpan, PrefillSpan
from backends.models.llama import Batch
from backends.models.loader import CausalModel
from backends.models.paged_kv import PagedKV
from backends.runners.attention_layout import Layout
from backends.runners.sampler import sample
from backends.structured_output.grammar import MaskFiller


class _Text(NamedTuple):
    """The fields of a sequence that a layout uses."""

    tokens: SequenceOf[int]
    pages: list[int]


class TorchRunner:
    """Lays out decodes first, those of about one length together, which keeps padding small."""

    def __init__(self, model: CausalModel, kv: PagedKV, *, dtype: torch.dtype, device: str) -> None:
        self._model, self._kv, self._device = model, kv, device
        self._layout = Layout(kv, model.windows, dtype=dtype, device=device)
        self._masks = MaskFiller()

    @torch.inference_mode()
    def warm_up(self, tokens: int) -> None:
        """Run a prefill of `tokens` and one decode, so that the first request does not pay for set-up.

        Writes to the first pages, which are still unused.
        """
        every = torch.arange(tokens, device=self._device)
        one = every[:1]
        prefill, row = PrefillSpan(0, tokens, slice(0, tokens), tokens, None), DecodeSpan(0, 1, slice(0, 1), 1, None)
        self._model.forward(Batch(torch.zeros_like(every), every, every, self._everywhere(prefill), one), self._kv)
        self._model.forward(Batch(one, one, one, self._everywhere(row), one), self._kv)

    @torch.inference_mode()
    def run(self, work: SequenceOf[Work]) -> list[list[Sampled]]:
        order = sorted(range(len(work)), key=lambda i: work[i].layout) if len(work) > 1 else [0]
        laid = [work[i] for i in order]
        sampling = [i for i, one in zip(order, laid, strict=True) if one.samples]
        requests = [request for i in sampling for request in asks_of(work[i])]
        masks = self._masks.fill([request.matcher for request in requests])
        logits = self._model.forward(self._batch(laid), self._kv)
        results: list[list[Sampled]] = [[] for _ in work]
        if logits is not None:
            samples = iter(sample(logits, requests, masks))
            for i in sampling:
                results[i] = [next(samples) for _ in range(1 + len(work[i].drafts))]
        return results

    @torch.inference_mode()
    def all_logits(self, ids: SequenceOf[int], pages: list[int]) -> Tensor:
        """Return logits of all positions of a sequence in one prefill, (len(ids), vocabulary). Its KV is written to `pages`."""
        every = self._tensor(list(range(len(ids))))
        text = _Text(ids, pages)
        spans = self._layout.spans([Work(cast(RequestSequence, text), 0, len(ids))])
        slots = torch.tensor(pages, device=self._device)[every // self._kv.page_size] * self._kv.page_size
        batch = Batch(self._tensor(list(ids)), every, slots + every % self._kv.page_size, spans, every)
        logits = self._model.forward(batch, self._kv)
        assert logits is not None
        return logits

    def _everywhere(self, span: DecodeSpan | PrefillSpan) -> dict[int, tuple[DecodeSpan | PrefillSpan]]:
        return dict.fromkeys(self._model.windows, (span,))

    def _batch(self, work: SequenceOf[Work]) -> Batch:
        size = self._kv.page_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: list[int] = []
        for one in work:
            sequence, start = one.sequence, one.start
            ids += sequence.tokens[start : start + one.length]
            ids += one.drafts
            positions += range(start, one.stop)
            slots += [sequence.pages[p // size] * size + p % size for p in range(start, one.stop)]
            if one.samples:
                last += range(len(ids) - 1 - len(one.drafts), len(ids))
        spans = self._layout.spans(work)
        return Batch(
            self._tensor(ids), self._tensor(positions), self._tensor(slots), spans, self._tensor(last) if last else None
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)


def asks_of(work: Work) -> list[SampleRequest]:
    """Return the samples to draw. A draw depends on its position alone, so an accepted draft does not change the text."""
    sequence = work.sequence
    sampling, known = sequence.sampling, len(sequence.tokens)
    penalized = sampling.presence_penalty or sampling.frequency_penalty
    output_tokens = sequence.tokens[sequence.num_prompt :] if penalized else ()
    ahead = range(1 + len(work.drafts))
    return [SampleRequest(sampling, sequence.seed, known + further, output_tokens, sequence.matcher) for further in ahead]
