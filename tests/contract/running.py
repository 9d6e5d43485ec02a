"""A gateway in a thread of its own, for tools that wait for their answers."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.served import Served, fake, serve


@contextmanager
def gateway_in_a_thread(folder: Path, *, more: str = "") -> Iterator[Served]:
    """In front of two fake workers with a short context, so that no answer is long."""
    ready, stopping = threading.Event(), asyncio.Event()
    found: list[Served] = []
    loop = asyncio.new_event_loop()

    async def live() -> None:
        workers = {name: fake(name[:4], max_context=512, tokens_per_step=64) for name in ("pico-0", "nano-0")}
        async with serve(folder, workers=workers, more=more) as served:
            found.append(served)
            ready.set()
            await stopping.wait()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(live())
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            ready.set()

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    ready.wait(100)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(100)
        assert not thread.is_alive(), "the gateway did not stop"
