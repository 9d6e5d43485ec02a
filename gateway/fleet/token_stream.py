"""Output of one submitted sequence: pieces, then exactly one `Finished`, also when the worker is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable

from backends.wire import Finished, Piece
from gateway.fleet.bounds import NOTHING_SENT, Sent

MAX_PIECES = 256
"""Pieces kept separately; later ones are joined to the last. The text itself is bounded by the model's context."""


WAKE_EVERY_S = 0.04
"""Least seconds between two wake-ups of a reader after the first piece. At a hundred steps a second, one wake-up a step would
cost the gateway more than the step costs the worker. The first piece and the end wake it at once."""


class TokenStream:
    """Output of one sequence. `pieces` have arrived and are not taken yet. Each callback runs once, before any reader wakes:
    `on_first` at the first piece, `on_begun` when the answer may be released, `on_finished` at the end.

    `begun` is set at the first piece. A stream that is held back begins after `tokens` tokens, at the first one below the
    confidence threshold, or at a normal end.
    """

    __slots__ = (
        "_abort",
        "_held",
        "_loop",
        "_only_end",
        "_threshold",
        "_timer",
        "_waiter",
        "_woken_at",
        "begun",
        "blamed",
        "confidence",
        "cut",
        "finished",
        "on_begun",
        "on_finished",
        "on_first",
        "pieces",
        "request",
        "sent",
        "tokens_left",
        "worker",
    )

    def __init__(self, worker: str, request: int, abort: Callable[[int], None], sent: Sent = NOTHING_SENT) -> None:
        self.worker = worker
        self.request = request
        self.sent = sent
        self.tokens_left = sent.max_tokens
        self.cut: tuple[str, ...] = ()
        """Fields of the report that were cut to their bounds."""
        self.pieces: list[Piece] = []
        self.finished: Finished | None = None
        self.on_first: Callable[[], None] | None = None
        self.on_begun: Callable[[], None] | None = None
        self.on_finished: Callable[[Finished], None] | None = None
        self.begun = False
        self.confidence = 1.0
        """Lowest confidence of the tokens held back."""
        self.blamed = False
        """The worker was lost while this was its newest request, before any output of it."""
        self._held, self._threshold = 0, 0.0
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._only_end = False
        self._woken_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def hold_back(self, tokens: int, threshold: float) -> None:
        """Begin only after `tokens` tokens, or at one with a confidence below `threshold`. Call before the first piece."""
        self._held, self._threshold = tokens, threshold

    @property
    def is_doubtful(self) -> bool:
        return self.confidence < self._threshold

    @property
    def has_output(self) -> bool:
        return self.begun or bool(self.pieces)

    def abort(self) -> None:
        """Ask the worker to stop. The `Finished` that follows still counts the tokens and time spent."""
        if self.finished is None:
            self._abort(self.request)

    async def wait(self) -> None:
        """Wait for a piece, the end, or a call of `wake`."""
        if not self.pieces and self.finished is None:
            await self._wait()

    async def wait_begun(self) -> None:
        """Wait until the answer has begun, its end, or a call of `wake`."""
        if not self.begun and self.finished is None:
            await self._wait()

    async def wait_end(self) -> None:
        """Wait for the end, the first token below the threshold, or a call of `wake`. Other pieces collect without a
        wake-up."""
        self._only_end = True
        if self.finished is None:
            await self._wait()

    async def _wait(self) -> None:
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
        if self._timer:
            self._timer.cancel()
            self._timer = None
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
        if not self.begun:
            self._weigh(piece)
        elif not self._only_end and self._waiter and not self._timer:
            self._wake_soon()

    def _wake_soon(self) -> None:
        now = self._loop.time()
        if now - self._woken_at >= WAKE_EVERY_S:
            self._woken_at = now
            self.wake()
        else:
            self._timer = self._loop.call_at(self._woken_at + WAKE_EVERY_S, self._woken)

    def _woken(self) -> None:
        self._timer, self._woken_at = None, self._loop.time()
        self.wake()

    def _weigh(self, piece: Piece) -> None:
        if self.on_first:
            on_first, self.on_first = self.on_first, None
            on_first()
        self._held -= piece.num_tokens
        self.confidence = min(self.confidence, piece.confidence)
        if self._held <= 0 or self.is_doubtful:
            self._begin()
            if self.is_doubtful or not self._only_end:
                self.wake()

    def _begin(self) -> None:
        self.begun = True
        if self.on_begun:
            on_begun, self.on_begun = self.on_begun, None
            on_begun()

    def end(self, finished: Finished) -> None:
        assert self.finished is None, "a sequence ended twice"
        self.finished = finished
        if not self.begun and self.pieces and finished.reason in ("stop", "length"):
            self._begin()
        # The listeners refer to this stream: dropping them here breaks the cycle without the garbage collector.
        on_finished, self.on_finished = self.on_finished, None
        self.on_first = self.on_begun = None
        if on_finished:
            on_finished(finished)
        self.wake()
