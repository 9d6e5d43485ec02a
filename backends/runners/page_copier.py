"""Copies pages between a device's KV and host memory on its own thread; on a GPU in its own stream, with pinned memory."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from backends.models.paged_kv import PagedKV

LEARNING = 0.1
"""Weight of the last copy in the moving average of `page_s`."""


class CopyFuture:
    def __init__(self, future: "Future[None]") -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        """Wait for the copy. Raise its exception, if it failed."""
        self._future.result()


class ThreadCopier:
    """`page_s` is the recent time of one page in seconds, in either direction."""

    def __init__(self, kv: PagedKV, num_slots: int) -> None:
        self._device = kv.stores()
        on_gpu = self._device[0].is_cuda
        self._host = [
            torch.zeros((store.shape[0], num_slots, *store.shape[2:]), dtype=store.dtype, pin_memory=on_gpu)
            for store in self._device
        ]
        self._stream: Any = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]
        self.page_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copier")

    def save(self, pages: Sequence[int], slots: Sequence[int]) -> CopyFuture:
        return self._submit(self._device, self._host, pages, slots)

    def load(self, slots: Sequence[int], pages: Sequence[int]) -> CopyFuture:
        return self._submit(self._host, self._device, slots, pages)

    def close(self) -> None:
        self._thread.shutdown()

    def _submit(self, sources: list[Tensor], targets: list[Tensor], read: Sequence[int], written: Sequence[int]) -> CopyFuture:
        """Start a copy. On a GPU it waits for earlier launches and is complete when its stream is."""
        launched = None if self._stream is None else torch.cuda.current_stream().record_event()

        def run() -> None:
            started = time.perf_counter()
            context: AbstractContextManager[Any] = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
            with torch.inference_mode(), context:
                if launched is not None:
                    self._stream.wait_event(launched)
                for source, target in zip(sources, targets, strict=True):
                    rows = source.index_select(1, torch.tensor(read, device=source.device))
                    rows = rows.to(target.device, non_blocking=True)
                    target.index_copy_(1, torch.tensor(written, device=target.device), rows)
                if self._stream is not None:
                    self._stream.synchronize()
            page_s = (time.perf_counter() - started) / len(read)
            self.page_s += LEARNING * (page_s - self.page_s) if self.page_s else page_s

        return CopyFuture(self._thread.submit(run))
