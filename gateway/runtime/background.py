"""Background tasks that cannot end unseen: each is restarted with a growing pause, counted, and named by readiness."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway.runtime.backoff import Backoff

log = logging.getLogger("headway.background")


class Background:
    """State of background work by name. `problems` has the work that failed and has not run since for as long as its pause."""

    def __init__(self) -> None:
        self.restarts: dict[str, int] = {}
        self.problems: dict[str, str] = {}

    def start(
        self, name: str, work: Callable[[], Awaitable[None]], *, failed: Callable[[str], object] = lambda problem: None
    ) -> "asyncio.Task[None]":
        """Run `work` until it is cancelled. It must not return. `failed` is called at each failure, before the pause."""
        self.restarts.setdefault(name, 0)
        return asyncio.create_task(self._keep(name, work, failed), name=name)

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]], failed: Callable[[str], object]) -> None:
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while True:
            began = loop.time()
            clear = loop.call_later(backoff.pause_s, self.problems.pop, name, None)
            try:
                await work()
                problem = "it ended"
            except Exception as error:  # one of the places that catch everything: the work must go on
                problem = f"{type(error).__name__}: {error}"
                log.error("%s failed", name, exc_info=error)
            finally:
                clear.cancel()
            backoff.ran(loop.time() - began)
            pause_s = backoff.take()
            self.restarts[name] += 1
            self.problems[name] = f"failed and restarts in {pause_s:g} s, see the gateway's log"
            log.error("%s: %s; it restarts in %g s", name, problem, pause_s)
            failed(problem)
            await asyncio.sleep(pause_s)
