import asyncio

from gateway.runtime.background import Background
from tests.served import until


async def test_failed_task_is_reported_and_restarted() -> None:
    background, runs = Background(), 0
    failures: list[str] = []

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise OverflowError("too large")
        await asyncio.Event().wait()

    task = background.start("work", work, failed=failures.append)
    await until(lambda: "work" in background.problems)
    assert failures == ["OverflowError: too large"]
    await until(lambda: runs == 2 and not background.problems)
    assert background.restarts == {"work": 1} and not task.done()
    task.cancel()


async def test_task_that_returns_is_a_failure() -> None:
    background = Background()

    async def work() -> None:
        return

    task = background.start("work", work)
    await until(lambda: background.restarts["work"] == 1 and "work" in background.problems)
    task.cancel()
