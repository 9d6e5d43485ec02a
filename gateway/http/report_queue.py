"""Queue of the reports that read much of the ledger: one thread, turns between tenants, a bound for each tenant."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from gateway.errors import Overloaded

MAX_WAITING = 16
"""Reports of one tenant that wait: two pages of the dashboard, which asks for up to six at a time."""
RETRY_S = 1.0

Got = TypeVar("Got")


class _Waiting(NamedTuple):
    work: Callable[[], Any]
    done: "asyncio.Future[Any]"


class ReportQueue:
    """Reports by tenant. The tenant whose turn is longest ago is served next; its own reports are in order of arrival."""

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reports")
        self._server: asyncio.Task[None] | None = None

    def num_waiting(self, tenant: str) -> int:
        return len(self._waiting.get(tenant, ()))

    async def run(self, tenant: str, work: Callable[[], Got]) -> Got:
        """Run `work` in the thread of the reports and return its result. Raises Overloaded if too many of the tenant wait."""
        if self.num_waiting(tenant) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} reports of {tenant} wait: try again", retry_after_s=RETRY_S)
        done: asyncio.Future[Got] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(_Waiting(work, done))
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve(), name="reports")
        return await done

    async def _serve(self) -> None:
        """Serve reports until none waits. A report's failure is its caller's."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            tenant, waiting = next(iter(self._waiting.items()))
            report = waiting.popleft()
            if waiting:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if report.done.done():  # its caller left
                continue
            future = loop.run_in_executor(self._thread, report.work)
            result: Any = (await asyncio.gather(future, return_exceptions=True))[0]
            if report.done.done():
                continue
            if isinstance(result, BaseException):
                report.done.set_exception(result)
            else:
                report.done.set_result(result)

    def close(self) -> None:
        if self._server:
            self._server.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
