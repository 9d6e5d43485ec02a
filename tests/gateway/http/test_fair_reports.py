import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import Overloaded
from gateway.ledger import key_store
from gateway.ledger.ledger import ReportTooLong, SqliteLedger
from gateway.ledger.rows import OutcomeRow
from gateway.ledger.store import MAX_LABEL_BYTES, Store
from gateway.policy.schema import RateLimits
from gateway.runtime.turn_thread import TurnThread
from tests.gateway.ledger.test_ledger import REQUEST, rows
from tests.served import Served, ask, serve, until

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS last FROM n"


async def test_reports_take_turns_between_tenants() -> None:
    queue, gate, order = TurnThread("reports", max_waiting=16), threading.Event(), list[str]()

    def report(name: str) -> str:
        gate.wait(10)
        order.append(name)
        return name

    asked = [asyncio.create_task(queue.run("a", lambda n=n: report(f"a{n}"))) for n in range(4)]  # type: ignore[misc]
    await until(lambda: queue.num_waiting("a") == 3)
    asked += [asyncio.create_task(queue.run("b", lambda: report("b0")))]
    await until(lambda: queue.num_waiting("b") == 1)
    gate.set()
    await asyncio.gather(*asked)
    assert order.index("b0") <= 2 and [name for name in order if name[0] == "a"] == ["a0", "a1", "a2", "a3"]
    queue.close()


async def test_reports_of_a_tenant_are_bounded_and_others_are_served() -> None:
    queue, gate = TurnThread("reports", max_waiting=2), threading.Event()
    asked = [asyncio.create_task(queue.run("a", lambda: gate.wait(10)))]
    await asyncio.sleep(0)
    await until(lambda: queue.num_waiting("a") == 0)
    asked += [asyncio.create_task(queue.run("a", lambda: gate.wait(10))) for _ in range(2)]
    await until(lambda: queue.num_waiting("a") == 2)
    with pytest.raises(Overloaded):
        await queue.run("a", lambda: None)
    other = asyncio.create_task(queue.run("b", lambda: "served"))
    gate.set()
    assert await other == "served" and await asyncio.gather(*asked) == [True] * 3
    queue.close()


async def test_failed_report_fails_its_caller_alone() -> None:
    queue = TurnThread("reports", max_waiting=16)

    def broken() -> None:
        raise ValueError("no rows")

    with pytest.raises(ValueError, match="no rows"):
        await queue.run("a", broken)
    assert await queue.run("a", lambda: 1) == 1
    queue.close()


def test_report_that_takes_too_long_is_ended_and_delays_no_lookup(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db", max_report_s=0.2)
    ended: list[Exception] = []

    def endless() -> None:
        try:
            ledger.report(ENDLESS)
        except ReportTooLong as error:
            ended.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    assert key_store.last_change(ledger.read_keys) == 0
    assert ledger.read("SELECT 1 AS one") == [{"one": 1}]
    thread.join()
    assert ended and ledger.report("SELECT 2 AS two") == [{"two": 2}]
    ledger.close()


async def test_revoked_key_is_refused_while_reports_run(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = Store(str(path))
    key, row = key_store.create(store, "red", RateLimits(), time.time())
    ledger = SqliteLedger(path)
    async with serve(tmp_path, ledger=ledger, more="tenants: {red: {}, blue: {keys: [b]}}") as one:
        gate = threading.Event()
        ledger.report = lambda *_: gate.wait(60) and []  # type: ignore[method-assign,assignment,func-returns-value]
        asked = [asyncio.create_task(report(one, "history", "b")) for _ in range(10)]
        await until(lambda: one.gateway.reports.num_waiting("blue") == 9)
        assert await status(one, "models", key) == 200
        key_store.revoke(store, row.id, time.time())
        async with asyncio.timeout(20):
            while await status(one, "models", key) != 401:  # noqa: ASYNC110  another process revoked it
                await asyncio.sleep(0.05)
        assert one.gateway.reports.num_waiting("blue") == 9
        gate.set()
        await asyncio.gather(*asked)
    store.close()


async def report(one: Served, name: str, key: str) -> int:
    async with one.http.get(f"{one.url}/v1/headway/{name}", headers={"authorization": f"Bearer {key}"}) as answer:
        return answer.status


async def status(one: Served, name: str, key: str) -> int:
    async with one.http.get(f"{one.url}/v1/{name}", headers={"authorization": f"Bearer {key}"}) as answer:
        return answer.status


LIMITED = "tenants: {red: {keys: [r], limits: {requests_per_minute: 5}}}"
ENDPOINTS = (
    "headway/history", "headway/costs", "headway/summary", "headway/slo", "headway/live", "headway/whoami", "headway/runs",
    "headway/workers", "headway/runs/x", "headway/runs/x/turns", "headway/decisions/x", "headway/policy", "models",
    "models/auto", "responses/x",
)  # fmt: skip


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_every_endpoint_counts_towards_the_limits(tmp_path: Path, name: str) -> None:
    async with serve(tmp_path, more=LIMITED) as one:
        codes = [await status(one, name, "r") for _ in range(7)]
        assert 429 not in codes[:5] and codes[5:] == [429, 429]


async def test_reports_count_by_the_time_that_they_read(tmp_path: Path) -> None:
    async with serve(tmp_path, more=LIMITED) as one:
        one.gateway.ledger.report = lambda *_: time.sleep(0.35) or []  # type: ignore[method-assign]
        assert [await report(one, "history", "r") for _ in range(3)] == [200, 200, 429]


async def test_labels_count_and_are_bounded(tmp_path: Path) -> None:
    async with serve(tmp_path, more=LIMITED) as one:
        large: dict[str, Any] = {"decision": "d", "right": True, "messages": [{"role": "user", "content": "x" * 1_000_000}]}
        headers = {"authorization": "Bearer r"}
        codes = []
        for _ in range(7):
            async with one.http.post(f"{one.url}/v1/headway/outcomes", json=large, headers=headers) as answer:
                codes.append(answer.status)
        assert codes == [413] * 5 + [429] * 2


def test_labels_of_a_tenant_are_bounded_and_others_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "ledger.db"))
    store.insert([REQUEST])
    label = OutcomeRow(at=0.0, tenant="b", run="", request="", decision="d", model="m", tier="small", score=1.0)
    store.insert([label])
    for number in range(80):
        row = msgspec.structs.replace(label, tenant="a", decision=f"d{number}", at=float(number), body=bytes(1_000_000))
        store.insert([row])
    store.close()
    ((size, newest),) = rows(tmp_path / "ledger.db", "SELECT sum(length(body)), max(at) FROM outcomes WHERE tenant = 'a'")
    assert size <= MAX_LABEL_BYTES + 2_000_000 and newest == 79.0
    assert rows(tmp_path / "ledger.db", "SELECT count(*) FROM outcomes WHERE tenant = 'b'") == [(1,)]


async def test_memory_is_given_back_after_large_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr("gateway.app.give_back", lambda: calls.append(None))
    async with serve(tmp_path) as one:
        assert await one.gateway._give_back_memory(0) == 0 and not calls
        assert (await one.chat(ask("x" * 100_000)))[0] == 400
        assert await one.gateway._give_back_memory(0) == 1 and len(calls) == 1
        assert await one.gateway._give_back_memory(1) == 1 and len(calls) == 1


async def test_memory_of_waiting_work_leaves_room_for_others() -> None:
    queue, gate = TurnThread("large bodies", max_waiting=100, max_bytes=100), threading.Event()
    asked = [asyncio.create_task(queue.run("a", lambda: gate.wait(10), num_bytes=10)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await queue.run("a", lambda: None, num_bytes=10)
    other = asyncio.create_task(queue.run("b", lambda: "served", num_bytes=20))
    await asyncio.sleep(0)
    gate.set()
    assert await other == "served" and all(await asyncio.gather(*asked))
    assert await queue.run("a", lambda: "again", num_bytes=50) == "again"
    queue.close()


async def test_closed_thread_refuses_what_waits() -> None:
    queue, gate = TurnThread("reports", max_waiting=100), threading.Event()
    running = asyncio.create_task(queue.run("a", lambda: gate.wait(10)))
    await asyncio.sleep(0)
    await until(lambda: queue.num_waiting("a") == 0)
    waiting = asyncio.create_task(queue.run("a", lambda: None))
    await asyncio.sleep(0)
    queue.close()
    with pytest.raises(Overloaded, match="stopping"):
        await waiting
    gate.set()
    running.cancel()
