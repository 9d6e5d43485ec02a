"""What one submitted sequence gives back: pieces, then exactly one `Finished`, also when the worker is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable

from backends.wire import Finished, Piece

MAX_PIECES = 256
"""A reader further behind than this gets its pieces joined; the text itself is bounded by the model's context."""


class Stream:
    """`pieces` is what came and was not taken. `on_finished` runs once, before any reader wakes."""

    __slots__ = ("_abort", "_loop", "_only_end", "_waiter", "finished", "on_finished", "pieces", "request", "worker")

    def __init__(self, worker: str, request: int, abort: Callable[[int], None]) -> None:
        self.worker = worker
        self.request = request
        self.pieces: list[Piece] = []
        self.finished: Finished | None = None
        self.on_finished: Callable[[Finished], None] | None = None
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._only_end = False

    def abort(self) -> None:
        """Tells the worker to stop; the `Finished` that follows still counts what was spent."""
        if self.finished is None:
            self._abort(self.request)

    async def wait(self) -> None:
        """Until there is a piece, or the end, or somebody calls `wake`."""
        if self.pieces or self.finished:
            return
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    async def wait_more(self) -> None:
        """Until there is another piece than those not taken, or the end, or somebody calls `wake`."""
        if self.finished is None:
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    async def wait_end(self) -> None:
        """Until the end, or somebody calls `wake`; pieces pile up meanwhile and wake nobody."""
        self._only_end = True
        if self.finished is None:
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    def take(self) -> list[Piece]:
        pieces, self.pieces = self.pieces, []
        return pieces

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            await self.wait()
            if not self.pieces and self.finished:
                return
            for piece in self.take():
                yield piece

    def wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def push(self, piece: Piece) -> None:
        if len(self.pieces) < MAX_PIECES:
            self.pieces.append(piece)
        else:
            last = self.pieces[-1]
            self.pieces[-1] = Piece(
                last.request,
                last.text + piece.text,
                last.num_tokens + piece.num_tokens,
                last.logprobs + piece.logprobs,
                min(last.confidence, piece.confidence),
            )
        if not self._only_end:
            self.wake()

    def end(self, finished: Finished) -> None:
        assert self.finished is None, "a sequence ended twice"
        self.finished = finished
        if self.on_finished:
            self.on_finished(finished)
        self.wake()
