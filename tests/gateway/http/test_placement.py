"""Where a turn goes among workers of one model: `Placement` in the gateway, as in the simulator."""

from pathlib import Path
from typing import Any

from tests.served import Served, ask, fake, serve, until

LONG = " ".join(f"rule {number} says nothing" for number in range(200))


def two() -> dict[str, Any]:
    return {name: fake("nano") for name in ("nano-0", "nano-1")}


def begun(text: str, beginning: str = LONG) -> dict[str, Any]:
    return ask(messages=[{"role": "system", "content": beginning}, {"role": "user", "content": text}])


async def explained(served: Served, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    async with served.http.post(f"{served.url}/v1/headway/explain", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        decision: dict[str, Any] = (await answer.json())["decision"]
        return decision


async def sent(served: Served, body: dict[str, Any], run: str) -> str:
    """The worker that took it."""
    before = {name: len(worker.submitted) for name, worker in served.workers.items()}
    headers = {"x-headway-run-id": run}
    async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
    (took,) = (name for name, worker in served.workers.items() if len(worker.submitted) > before[name])
    return took


async def test_new_run_goes_to_the_freest_worker_and_a_similar_run_follows(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=two()) as served:
        first = await sent(served, begun("one", "something else"), "r0")
        second = await sent(served, begun("two"), "r1")
        assert second != first
        served.gateway.fleet.kv_index.forget(second)  # nothing says yet that it holds the beginning
        like = await explained(served, begun("three"))
        assert (like["chosen"]["worker"], like["placement"]) == (second, "burst")
        unlike = await explained(served, begun("three", "and " + LONG))
        assert (unlike["chosen"]["worker"], unlike["placement"]) == (first, "roomiest")


async def test_run_stays_with_its_pages_and_moves_when_they_are_lost(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=two()) as served:
        home = await sent(served, begun("one"), "r")
        (away,) = served.workers.keys() - {home}
        longer = begun("one and two")
        stays = await explained(served, longer, **{"x-headway-run-id": "r"})
        assert (stays["chosen"]["worker"], stays["placement"]) == (home, "stays")
        assert await sent(served, longer, "r") == home
        await served.workers[home].stop()
        await until(lambda: not served.gateway.fleet.clients[home].healthy)
        assert await sent(served, longer, "r") == away
        (run,) = served.gateway.runs.all()
        assert run.turns == 3 and served.gateway.fleet.footprints.tokens(home) == 0


async def test_placement_can_be_switched_off(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=two(), more="scheduling: {placement: false}") as served:
        assert (await explained(served, begun("one")))["placement"] is None


async def test_workers_get_no_scores_with_retention_off(tmp_path: Path) -> None:
    async with serve(tmp_path, workers=two(), more="scheduling: {retention: false}") as served:
        await sent(served, begun("one"), "r")
        await sent(served, begun("two"), "s")  # what is to be told goes with the next question at the latest
        assert not any(worker.retained for worker in served.workers.values())
