"""Ids that nobody can guess, read from the system many at a time: a system call for each would cost more than all the rest.

They begin with the second in which they were made: an index that gets them touches few of its pages. It would touch another one
for each, and the ledger took three times as long (docs/log.md).
"""

from collections.abc import Callable

BYTES, AT_A_TIME = 8, 64


class RandomIds:
    """`read` gives so many random bytes, `clock` is Unix time."""

    def __init__(self, read: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._read, self._clock = read, clock
        self._left: list[str] = []

    def take(self) -> str:
        """24 hexadecimal digits, eight of them of the time."""
        if not self._left:
            text = self._read(BYTES * AT_A_TIME).hex()
            self._left = [text[at : at + 2 * BYTES] for at in range(0, len(text), 2 * BYTES)]
        return f"{int(self._clock()) % 2**32:08x}{self._left.pop()}"
