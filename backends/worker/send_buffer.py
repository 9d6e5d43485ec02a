"""Frames for one gateway that are not sent yet. Bounded in bytes: steps of a small model are short, and what a gateway leaves
unread while it stands still for some seconds must not cost it what runs here."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

MAX_UNSENT_BYTES = 64 * 2**20
"""A batch of 32 sequences writes about a kilobyte a step: minutes of steps."""


class Close(NamedTuple):
    """The last thing to be sent, with its reason."""

    reason: str


class SendBuffer:
    """Begins with a greeting, which may be of any size. One sender waits in `get`."""

    def __init__(self, greeting: Sequence[bytes] = (), max_bytes: int = MAX_UNSENT_BYTES) -> None:
        self._waiting: deque[bytes | Close] = deque(greeting)
        self._filled = asyncio.Event()
        self.num_bytes = sum(map(len, greeting))
        self._max_bytes = self.num_bytes + max_bytes

    def put(self, frames: list[bytes]) -> bool:
        """False when it is full: nothing is taken then."""
        size = sum(map(len, frames))
        if self.num_bytes + size > self._max_bytes:
            return False
        self._waiting += frames
        self.num_bytes += size
        self._filled.set()
        return True

    def close(self, reason: str) -> None:
        """After what is unsent."""
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
