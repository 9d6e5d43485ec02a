"""Native models on a GPU: our kernels between the matrix products, and decodes by captured graphs.

A graph is for one number of rows and any lengths: it reads tokens, positions, slots and page tables from fixed buffers. Padding
rows write to the last page, which is assigned to no sequence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backends.engine.work import Sampled, Work
from backends.models.llama import Llama
from backends.models.paged_kv import Int8KV, PagedKV
from backends.runners.sampler import sample
from backends.runners.torch_runner import asks_of
from backends.structured_output.grammar import MaskFiller
from kernels.add_norm import add_norm
from kernels.paged_attention import paged_attention
from kernels.rope_write import rope_write
from kernels.silu_mul import silu_mul

SPLITS = 8
"""Parts of a context that a decode processes in parallel: a row has only as many programs as the model has KV heads."""


class StepInputs(NamedTuple):
    """(T,) ids, positions, slots; (S, pages) table; (S + 1,) starts; (S,) contexts; rows to sample after."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    table: Tensor
    starts: Tensor
    contexts: Tensor
    last: Tensor
    longest: int


class TritonRunner:
    def __init__(self, model: Llama, kv: PagedKV, *, device: str, max_sequences: int) -> None:
        """`kv` has one page more than sequences use."""
        self._model, self._kv, self._device = model, kv, device
        self._turns = torch.view_as_real(model.rotations[:, 0]).contiguous()
        self._pages, self._slots = list(kv.pages.unbind(0)), list(kv.pages.flatten(1, 2).unbind(0))
        scales = kv.scales.squeeze(-1) if isinstance(kv, Int8KV) else None
        self._page_scales = [None] * len(self._pages) if scales is None else list(scales.unbind(0))
        self._slot_scales = [None] * len(self._pages) if scales is None else list(scales.flatten(1, 2).unbind(0))
        self._table_width = -(-model.model_config.max_positions // kv.page_size)
        self._sizes = _sizes(max_sequences)
        self._decodes: dict[int, _Decode] = {}
        self._masks = MaskFiller()

    @torch.inference_mode()
    def warm_up(self, tokens: int) -> None:
        """Run a prefill and capture every decode graph. Writes to the first pages, which are still unused."""
        every = torch.arange(tokens, device=self._device)
        pages = -(-tokens // self._kv.page_size)
        one = self._ints([[tokens]])[0]
        table = torch.arange(pages, device=self._device, dtype=torch.int32)[None]
        self._forward(StepInputs(every * 0, every, every, table, self._ints([[0, tokens]])[0], one, every[:1], tokens), 1)
        for size in self._sizes:
            self._decode(size)

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        requests = [request for one in work if one.samples for request in asks_of(one)]
        masks = self._masks.fill([request.matcher for request in requests])
        decodes = all(one.num_tokens == 1 for one in work)
        logits = self._run_decode(work) if decodes else self._forward(self._step(work), 1)
        samples = iter(sample(logits, requests, masks) if requests else ())
        return [[next(samples) for _ in range(1 + len(one.drafts))] if one.samples else [] for one in work]

    def _run_decode(self, work: Sequence[Work]) -> Tensor:
        size = next(size for size in self._sizes if size >= len(work))
        decode = self._decode(size)
        page_size, scratch = self._kv.page_size, self._kv.pages.shape[1] - 1
        rows = [(one.sequence.tokens[one.start], one.start, one.sequence.pages) for one in work]
        rows += [(0, 0, [scratch])] * (size - len(work))
        decode.step.ids.copy_(torch.tensor([token for token, _, _ in rows]))
        decode.step.positions.copy_(torch.tensor([start for _, start, _ in rows]))
        slots = [pages[start // page_size] * page_size + start % page_size for _, start, pages in rows]
        decode.step.slots.copy_(torch.tensor(slots))
        decode.step.contexts.copy_(torch.tensor([start + 1 for _, start, _ in rows], dtype=torch.int32))
        width = max(len(pages) for _, _, pages in rows)
        table = [(pages + [0] * width)[:width] for _, _, pages in rows]
        decode.step.table[:, :width].copy_(torch.tensor(table, dtype=torch.int32))
        logits = decode.replay(self)
        sampling = [row for row, one in enumerate(work) if one.samples]
        return logits[: len(work)] if len(sampling) == len(work) else logits[sampling]

    def _decode(self, size: int) -> "_Decode":
        if size not in self._decodes:
            self._decodes[size] = _Decode(self, size, self._table_width, self._kv.pages.shape[1] - 1, self._device)
        return self._decodes[size]

    def _step(self, work: Sequence[Work]) -> StepInputs:
        page_size, pages = self._kv.page_size, [one.sequence.pages for one in work]
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: list[int] = []
        starts = [0]
        for one in work:
            ids += one.sequence.tokens[one.start : one.start + one.length]
            ids += one.drafts
            positions += range(one.start, one.stop)
            slots += [one.sequence.pages[p // page_size] * page_size + p % page_size for p in range(one.start, one.stop)]
            starts.append(len(ids))
            if one.samples:
                last += range(len(ids) - 1 - len(one.drafts), len(ids))
        width = max(map(len, pages))
        table, contexts = [(row + [0] * width)[:width] for row in pages], [one.stop for one in work]
        packed, places, written, rows = (
            torch.tensor(values, device=self._device) for values in (ids, positions, slots, last or [0])
        )
        whole = torch.tensor(table, dtype=torch.int32, device=self._device)
        first, second = self._ints([starts, contexts])
        return StepInputs(packed, places, written, whole, first, second, rows, max(one.num_tokens for one in work))

    def _ints(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        return [torch.tensor(row, dtype=torch.int32, device=self._device) for row in rows]

    def _forward(self, step: StepInputs, splits: int) -> Tensor:
        """Return logits of the last rows, in float32."""
        model, model_config = self._model, self._model.model_config
        x = model.embedding[step.ids]
        heads = (len(step.ids), model_config.num_heads + 2 * model_config.num_kv_heads, model_config.head_dim)
        delta = None
        for index, layer in enumerate(model.layers):
            x, normed = add_norm(x, delta, layer.attention_norm, eps=model_config.norm_eps)
            qkv, _ = rope_write(
                layer.qkv(normed).view(heads),
                self._turns,
                step.positions,
                step.slots,
                self._slots[index],
                heads=model_config.num_heads,
                norm=layer.qk_norm,
                eps=model_config.norm_eps,
                kv_scales=self._slot_scales[index],
            )
            mixed = paged_attention(
                qkv[:, : model_config.num_heads],
                self._pages[index],
                step.table,
                step.starts,
                step.contexts,
                scale=model_config.head_dim**-0.5,
                longest=step.longest,
                window=layer.window,
                splits=splits,
                kv_scales=self._page_scales[index],
            )
            x, normed = add_norm(x, layer.out(mixed.flatten(1)), layer.mlp_norm, eps=model_config.norm_eps)
            delta = layer.down(silu_mul(layer.gate_up(normed)))
        _, normed = add_norm(x, delta, model.norm, eps=model_config.norm_eps)
        return model.head(normed[step.last]).float()


class _Decode:
    """Decodes of `size` rows: buffers, and on a GPU the graph that reads them."""

    def __init__(self, runner: TritonRunner, size: int, table_width: int, scratch: int, device: str) -> None:
        def longs() -> Tensor:
            return torch.zeros(size, dtype=torch.long, device=device)

        starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        table = torch.full((size, table_width), scratch, dtype=torch.int32, device=device)
        contexts = torch.ones(size, dtype=torch.int32, device=device)
        page_size = runner._kv.page_size
        rows = torch.arange(size, device=device)
        self.step = StepInputs(longs(), longs(), longs() + scratch * page_size, table, starts, contexts, rows, 1)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        if device.startswith("cuda"):
            self._capture(runner)

    def replay(self, runner: TritonRunner) -> Tensor:
        if self._graph is None:
            return runner._forward(self.step, SPLITS)
        self._graph.replay()
        return self._logits

    def _capture(self, runner: TritonRunner) -> None:
        """Capture the graph after one run outside of it, which compiles kernels and sets up libraries."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            runner._forward(self.step, SPLITS)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = runner._forward(self.step, SPLITS)


def _sizes(most: int) -> list[int]:
    """Return the padded batch sizes up to `most`: 1, 2, 4, 8, then multiples of 8."""
    sizes = [size for size in (1, 2, 4) if size < most]
    return [*sizes, *range(8, most + 8, 8)] if most > 4 else [*sizes, most]
