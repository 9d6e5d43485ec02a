"""Ids that nobody can guess, read from the system many at a time: a system call for each would cost more than all the rest."""

from collections.abc import Callable

BYTES, AT_A_TIME = 12, 64


class RandomIds:
    """`read` gives so many random bytes."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left: list[str] = []

    def take(self) -> str:
        """24 hexadecimal digits."""
        if not self._left:
            text = self._read(BYTES * AT_A_TIME).hex()
            self._left = [text[at : at + 2 * BYTES] for at in range(0, len(text), 2 * BYTES)]
        return self._left.pop()
