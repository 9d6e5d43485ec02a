"""A thread for work that would stop the event loop: turns between tenants, a bound for each tenant."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from gateway.errors import Overloaded

RETRY_S = 1.0

Got = TypeVar("Got")


class _Waiting(NamedTuple):
    work: Callable[[], Any]
    done: "asyncio.Future[Any]"


class TurnThread:
    """Work by tenant. The tenant whose turn is longest ago is served next; its own work is in order of arrival.

    `noun` is the plural name of the work in messages.
    """

    def __init__(self, noun: str, *, max_waiting: int, max_bytes: int = 0) -> None:
        """`max_bytes` bounds the memory of all waiting work, 0 for none."""
        self._noun = noun
        self.num_served = 0
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._bytes_of = Counter[str]()
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=noun)
        self._server: asyncio.Task[None] | None = None

    def num_waiting(self, tenant: str) -> int:
        return len(self._waiting.get(tenant, ()))

    async def run(self, tenant: str, work: Callable[[], Got], *, num_bytes: int = 0) -> Got:
        """Run `work`, which holds `num_bytes` of memory, in the thread and return its result.

        Raises Overloaded if too many of the tenant wait, or if it would hold more than what is then left for all: one tenant
        alone has half, and another one always has room.
        """
        if self.num_waiting(tenant) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} {self._noun} of {tenant} wait: try again", retry_after_s=RETRY_S)
        if num_bytes and self._bytes_of[tenant] + num_bytes > self._max_bytes - self._bytes_of.total():
            raise Overloaded(f"{self._noun} of {tenant} hold their share of the memory: try again", retry_after_s=RETRY_S)
        done: asyncio.Future[Got] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(_Waiting(work, done))
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve(), name=self._noun)
        self._bytes_of[tenant] += num_bytes
        try:
            return await done
        finally:
            self._bytes_of[tenant] -= num_bytes
            if not self._bytes_of[tenant]:
                del self._bytes_of[tenant]

    async def _serve(self) -> None:
        """Serve until none waits. A failure is its caller's."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            tenant, waiting = next(iter(self._waiting.items()))
            item = waiting.popleft()
            if waiting:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if item.done.done():  # its caller left
                continue
            future = loop.run_in_executor(self._thread, item.work)
            try:
                result: Any = (await asyncio.gather(future, return_exceptions=True))[0]
            except asyncio.CancelledError:
                result = Overloaded("the gateway is stopping: try again", retry_after_s=RETRY_S)
            self.num_served += 1
            if item.done.done():
                continue
            if isinstance(result, BaseException):
                item.done.set_exception(result)
            else:
                item.done.set_result(result)

    def close(self) -> None:
        """Refuse all work that waits. The work that runs ends by itself."""
        if self._server:
            self._server.cancel()
        for waiting in self._waiting.values():
            for item in waiting:
                if not item.done.done():
                    item.done.set_exception(Overloaded("the gateway is stopping: try again", retry_after_s=RETRY_S))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)
