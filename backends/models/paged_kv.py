"""The KV of a model in pages of one pool, in its own type or in int8."""

import contextlib
import math
import mmap

import torch
from torch import Tensor


class PagedKV:
    """(layers, pages, page_size, 2 * kv_heads, head_dim), all zero at first: masked slots are read and must be finite."""

    def __init__(
        self, *, layers: int, num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (layers, num_pages, page_size, 2 * kv_heads, head_dim)
        self.pages = _zeros(shape, dtype, device)
        self.page_size, self.kv_heads = page_size, kv_heads
        self._pages = list(self.pages.unbind(0))
        self._slots = list(self.pages.view(layers, num_pages * page_size, 2 * kv_heads, head_dim).unbind(0))

    def write(self, layer: int, slots: Tensor, kv: Tensor) -> None:
        """`kv` (rows, 2 * kv_heads, head_dim) into `slots` (rows,)."""
        self._slots[layer].index_copy_(0, slots, kv)

    def read(self, layer: int, where: slice | Tensor, sequences: int, slots: int) -> tuple[Tensor, Tensor]:
        """K and V of `sequences`, each (sequences, kv_heads, slots, head_dim)."""
        kv = self._found(self._pages[layer], self._slots[layer], where, sequences, slots)
        return kv[:, : self.kv_heads], kv[:, self.kv_heads :]

    def stores(self) -> list[Tensor]:
        """Everything that a page consists of, each (layers, pages, ...)."""
        return [self.pages]

    def _found(self, pages: Tensor, all_slots: Tensor, where: slice | Tensor, sequences: int, slots: int) -> Tensor:
        found = all_slots[where] if isinstance(where, slice) else pages.index_select(0, where)
        return found.view(sequences, -1, 2 * self.kv_heads, found.shape[-1])[:, :slots].transpose(1, 2)


class Int8KV(PagedKV):
    """K and V in int8 with a scale for each head of each slot: half of bfloat16's bytes, and a little of its accuracy."""

    def __init__(
        self, *, layers: int, num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        super().__init__(
            layers=layers,
            num_pages=num_pages,
            page_size=page_size,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=torch.int8,
            device=device,
        )
        self._dtype = dtype
        self.scales = _zeros((*self.pages.shape[:-1], 1), torch.float32, device)
        self._page_scales = list(self.scales.unbind(0))
        self._slot_scales = list(self.scales.view(layers, num_pages * page_size, 2 * kv_heads, 1).unbind(0))

    def write(self, layer: int, slots: Tensor, kv: Tensor) -> None:
        values = kv.float()
        scale = values.abs().amax(-1, keepdim=True).div_(127).clamp_(min=1e-10)
        self._slots[layer].index_copy_(0, slots, (values / scale).round_().to(torch.int8))
        self._slot_scales[layer].index_copy_(0, slots, scale)

    def read(self, layer: int, where: slice | Tensor, sequences: int, slots: int) -> tuple[Tensor, Tensor]:
        values = self._found(self._pages[layer], self._slots[layer], where, sequences, slots)
        scales = self._found(self._page_scales[layer], self._slot_scales[layer], where, sequences, slots)
        kv = (values * scales).to(self._dtype)
        return kv[:, : self.kv_heads], kv[:, self.kv_heads :]

    def stores(self) -> list[Tensor]:
        return [self.pages, self.scales]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """In the host's large pages of memory, where it has them: what a step reads lies all over the pool, and looking up small
    ones took up to a seventh of it (docs/log.md)."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or num_bytes == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape).zero_()
