"""Unguessable ids, drawn from the system many at a time: a system call for each would cost more than the rest of an id.

An id begins with the second of its making, so that consecutive ids fall on few pages of a database index. Without that the
ledger takes three times as long (docs/log.md).
"""

from collections.abc import Callable

BYTES, AT_A_TIME = 8, 64


class RandomIds:
    """`read` returns a number of random bytes, `clock` is Unix time."""

    def __init__(self, read: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._read, self._clock = read, clock
        self._left: list[str] = []

    def take(self) -> str:
        """Return 24 hexadecimal digits, the first eight of the time."""
        if not self._left:
            text = self._read(BYTES * AT_A_TIME).hex()
            self._left = [text[at : at + 2 * BYTES] for at in range(0, len(text), 2 * BYTES)]
        return f"{int(self._clock()) % 2**32:08x}{self._left.pop()}"
