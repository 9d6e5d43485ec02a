"""Unsent frames for one gateway, bounded in bytes. The bound must outlast a stall of some seconds in the gateway, in which a
small model runs many short steps, without losing the requests that run here.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

MAX_UNSENT_BYTES = 64 * 2**20
"""Bytes of unsent frames. A batch of 32 sequences writes about a kilobyte a step, so this is minutes of steps."""


class Close(NamedTuple):
    """The end of a stream of frames, with its reason."""

    reason: str


class SendBuffer:
    """Starts with a greeting of any size. A single sender waits in `get`."""

    def __init__(self, greeting: Sequence[bytes] = (), max_bytes: int = MAX_UNSENT_BYTES) -> None:
        self._waiting: deque[bytes | Close] = deque(greeting)
        self._filled = asyncio.Event()
        self.num_bytes = sum(map(len, greeting))
        self._max_bytes = self.num_bytes + max_bytes

    def put(self, frames: list[bytes]) -> bool:
        """Append frames. Return False, and append nothing, if the buffer is full."""
        size = sum(map(len, frames))
        if self.num_bytes + size > self._max_bytes:
            return False
        self._waiting += frames
        self.num_bytes += size
        self._filled.set()
        return True

    def close(self, reason: str) -> None:
        """Close after the unsent frames."""
        self._waiting.append(Close(reason))
        self._filled.set()

    async def get(self) -> bytes | Close:
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        item = self._waiting.popleft()
        if isinstance(item, bytes):
            self.num_bytes -= len(item)
        return item
