"""Budgets over HTTP: nothing is spent beyond them, the answer says which and how much, and what is not taken comes back."""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.http.auth import key_id_of
from gateway.ledger.rows import RequestRow
from gateway.metering.budget_history import restore
from gateway.metering.budgets import NOTHING, Budgets, Payers
from tests.served import Served, ask, fake, serve, until

RUN = {"x-headway-run-id": "job"}


async def served_chat(served: Served, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


budgeted = partial(serve, route="budgets: [b]")


@pytest.mark.parametrize("stream", [False, True])
async def test_hundred_requests_at_once_never_overshoot_a_run_budget(tmp_path: Path, stream: bool) -> None:
    async with budgeted(tmp_path, more="budgets: {b: {per: run, tokens: 400, turns: 20}}") as served:

        async def one(number: int) -> int:
            body = ask(f"question {number}", stream=stream)
            async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=RUN) as answer:
                await answer.read()
                return answer.status

        statuses = await asyncio.gather(*(one(number) for number in range(100)))
        assert set(statuses) == {200, 429}
        await until(lambda: len(served.ledger.rows) >= 100)
        rows = [row for row in served.ledger.rows if isinstance(row, RequestRow)]
        answered = [row for row in rows if row.outcome == "ok"]
        assert len(answered) == statuses.count(200) <= 20
        assert 300 <= sum(row.prompt_tokens + row.output_tokens for row in answered) <= 400
        served.gateway.budgets.check()


async def test_refusal_names_the_budget_its_rest_and_its_reset(tmp_path: Path) -> None:
    more = "budgets: {b: {per: tenant, turns: 1, window_s: 1000000}}"
    async with budgeted(tmp_path, more=more) as served:
        assert (await served.chat())[0] == 200
        status, body, headers = await served_chat(served, ask())
        assert (status, body["error"]["code"], body["error"]["type"]) == (429, "budget_exceeded", "insufficient_quota")
        assert 'budget "b" of this tenant: 0 turns of 1 turns left' in body["error"]["message"]
        assert "resets at" in body["error"]["message"]
        assert 0 < int(headers["retry-after"]) <= 1_000_000
        assert headers["x-should-retry"] == "false"
        async with served.http.post(f"{served.url}/v1/messages", json=ask()) as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (429, "rate_limit_error")


async def test_abort_releases_the_unused_reservation(tmp_path: Path) -> None:
    worker = fake("nano")
    async with budgeted(tmp_path, workers={"nano-0": worker}, more="budgets: {b: {per: run, tokens: 100}}") as served:
        worker.hold()
        asked = asyncio.create_task(served_chat(served, ask(max_tokens=60), **RUN))
        await until(lambda: worker.num_live == 1)
        status, body, headers = await served_chat(served, ask(max_tokens=60), **RUN)
        assert status == 429
        assert "are reserved for requests in flight" in body["error"]["message"]
        assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")
        asked.cancel()
        await until(lambda: all(sequence.aborted for sequence in worker._running))
        worker.release()
        await until(lambda: any(isinstance(row, RequestRow) and row.outcome == "aborted" for row in served.ledger.rows))
        assert (await served_chat(served, ask(max_tokens=60), **RUN))[0] == 200
        served.gateway.budgets.check()


async def test_lost_worker_is_charged_for_reported_tokens_and_reservations_are_released(tmp_path: Path) -> None:
    worker = fake("nano")
    async with budgeted(tmp_path, workers={"nano-0": worker}, more="budgets: {b: {per: run, turns: 2}}") as served:
        worker.hold()
        asked = asyncio.create_task(served_chat(served, ask(), **RUN))
        await until(lambda: worker.num_live == 1)
        worker.drop_links()
        assert (await asked)[0] == 503
        await until(lambda: served.gateway.fleet.clients["nano-0"].healthy)
        worker.release()
        assert (await served_chat(served, ask(), **RUN))[0] == 200
        assert (await served_chat(served, ask(), **RUN))[0] == 429
        served.gateway.budgets.check()


async def test_dollar_budget_stops_within_the_learned_price(tmp_path: Path) -> None:
    async with budgeted(tmp_path, more="budgets: {b: {per: run, usd: 0.00005}}") as served:
        for number in range(5):
            await served.chat(ask(f"warm {number}"))
        answers = await asyncio.gather(*(served_chat(served, ask(f"question {n}"), **RUN) for n in range(100)))
        assert {status for status, *_ in answers} == {200, 429}
        spent = sum(body["usage"]["headway"]["cost_usd"] for status, body, _ in answers if status == 200)
        assert 0 < spent <= 0.00005


async def test_budget_survives_a_restart(tmp_path: Path) -> None:
    keys = "tenants: {acme: {keys: [one, two]}}"
    for per, key, run in (("tenant", "", ""), ("key", key_id_of(b"one"), ""), ("run", "", "job")):
        async with budgeted(tmp_path, more=f"budgets: {{b: {{per: {per}, turns: 9}}}}\n{keys}") as served:
            for number in range(2):
                assert (await served_chat(served, ask(f"{number}"), authorization="Bearer one", **RUN))[0] == 200
            payers = Payers("acme", key, run)
            policy = served.gateway.policy
            spent = served.gateway.budgets.spent("b", payers, time.time())
            assert spent.turns == 2
            after = Budgets(policy.budgets)
            restore(after, policy, served.ledger.read, time.time())
            assert after.spent("b", payers, time.time()) == pytest.approx(spent)
            young = msgspec.structs.replace(policy.budgets["b"], window_s=5.0)
            windowed = msgspec.structs.replace(policy, budgets={"b": young})
            later = Budgets(windowed.budgets)
            restore(later, windowed, served.ledger.read, time.time() + 60)
            assert later.spent("b", payers, time.time() + 60) == NOTHING
