"""How many prompts are read in a round of the event loop.

A request takes two rounds, one until its body is asked for and one until that is there. In a burst all that came in one round
were read in the next, a millisecond each, so that who came then waited twice as long as the work before it takes, only to be
told no.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

READ_A_ROUND = 4
MAX_WAITING = 1024
REFUSE_S = 0.002
"""Of a round, for those who are told no."""


class Pace:
    """Lets those go on for whom there is time in a round, in the order in which they came. At most as many wait as there are
    connections; `is_full` says when it is time to let nobody else in."""

    def __init__(self, *, read_a_round: int = READ_A_ROUND, max_waiting: int = MAX_WAITING) -> None:
        self._read_a_round, self._max_waiting = read_a_round, max_waiting
        self._left = read_a_round
        self._round: asyncio.Handle | None = None
        self._waiting = deque[tuple[asyncio.Future[None], Callable[[], None]]]()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._max_waiting

    async def turn(self, check: Callable[[], None]) -> None:
        """Returns when there is time for one more in a round, and `check` has nothing against it. Raises what that does."""
        check()
        loop = asyncio.get_running_loop()
        self._round = self._round or loop.call_soon(self._next_round)
        if self._left and not self._waiting:
            self._left -= 1
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append((waiter, check))
        await waiter

    def _next_round(self) -> None:
        self._left, until = self._read_a_round, time.monotonic() + REFUSE_S
        self._round = asyncio.get_running_loop().call_soon(self._next_round) if self._waiting else None
        while self._waiting and self._left and time.monotonic() < until:
            waiter, check = self._waiting.popleft()
            if waiter.done():
                continue
            try:
                check()
            except Exception as error:  # it is who waits that is told
                waiter.set_exception(error)
            else:
                self._left -= 1
                waiter.set_result(None)
