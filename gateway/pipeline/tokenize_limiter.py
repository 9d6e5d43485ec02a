"""How many prompts are read in a round of the event loop.

All that come in one round are called in the next. In a burst they would all be read in it, a millisecond each, and who came
meanwhile would wait for that, only to be told no.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

READ_A_ROUND = 4
REFUSE_S = 0.002
"""Of a round, for those who are told no."""


class _Waiting(NamedTuple):
    waiter: "asyncio.Future[None]"
    check: Callable[[], None]


class _FairLine:
    """Tenants take turns; each one's own go in the order in which they came."""

    def __init__(self) -> None:
        self._tenants = OrderedDict[str, deque[_Waiting]]()

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def append(self, tenant: str, waiting: _Waiting) -> None:
        self._tenants.setdefault(tenant, deque()).append(waiting)

    def pop(self) -> _Waiting:
        tenant, line = self._tenants.popitem(last=False)
        waiting = line.popleft()
        if line:
            self._tenants[tenant] = line
        return waiting


class TokenizeLimiter:
    """Lets those go on for whom there is time in a round, those that are `first` before the rest. As many wait as have sent
    their bodies, which are bounded by the connections that there may be."""

    def __init__(self, *, read_a_round: int = READ_A_ROUND) -> None:
        self._read_a_round = self._left = read_a_round
        self._round: asyncio.Handle | None = None
        self._first, self._rest = _FairLine(), _FairLine()

    async def turn(self, check: Callable[[], None], *, tenant: str = "", first: bool = False) -> None:
        """Returns when there is time for one more in a round, and `check` has nothing against it, which is asked at once and
        again when it is time. Raises what that does."""
        check()
        loop = asyncio.get_running_loop()
        self._round = self._round or loop.call_soon(self._next_round)
        if self._left and not self._first and not self._rest:
            self._left -= 1
            return
        waiting = _Waiting(loop.create_future(), check)
        (self._first if first else self._rest).append(tenant, waiting)
        await waiting.waiter

    def _next_round(self) -> None:
        """Who is let go on here does so in the round after this one, which is therefore planned in any case."""
        self._left, until = self._read_a_round, time.monotonic() + REFUSE_S
        while self._left and (line := self._first or self._rest) and time.monotonic() < until:
            waiter, check = line.pop()
            if waiter.done():
                continue
            try:
                check()
            except Exception as error:  # it is who waits that is told
                waiter.set_exception(error)
            else:
                self._left -= 1
                waiter.set_result(None)
        is_idle = self._left == self._read_a_round and not self._first and not self._rest
        self._round = None if is_idle else asyncio.get_running_loop().call_soon(self._next_round)
