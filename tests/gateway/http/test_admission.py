"""Promises over HTTP: a worker that is held makes all wait; each route says what becomes of who would wait too long."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger.rows import DecisionRow
from gateway.policy.schema import Policy
from gateway.request import Request
from gateway.scheduling.shed_gate import EVALUATE_EVERY
from gateway.text.prompt_encoder import Prompt
from tests.fake_worker import FakeWorker
from tests.served import Served, ask, fake, serve, until

SLO = "slo: {interactive: {ttft_s: 0.2}, agent: {ttft_s: 0.4}, batch: {deadline_s: 3600}}"


def one_seat() -> dict[str, FakeWorker]:
    return {"nano-0": fake("nano", max_sequences=1)}


async def post(served: Served, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    async with served.http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


async def busy(served: Served, name: str) -> "asyncio.Task[Any]":
    """One request that does not end on a worker whose requests take ten seconds."""
    predictor = served.gateway.fleet.predictors[name]
    predictor._service.observe(10.0, 1e6)
    served.workers[name].hold()
    task = asyncio.create_task(post(served, ask("first", model=name.split("-")[0])))
    await until(lambda: served.workers[name].num_live == 1)
    return task


async def test_request_that_misses_its_slo_is_shed_and_turns_of_admitted_runs_wait(tmp_path: Path) -> None:
    async with serve(
        tmp_path, workers={"nano-0": fake("nano", max_sequences=1)}, route="on_overload: shed", more=SLO
    ) as served:
        run = {"x-headway-run-id": "begun"}
        assert (await post(served, ask("turn 1"), **run))[0] == 200
        first = await busy(served, "nano-0")
        status, body, headers = await post(served, ask("second"))
        assert (status, body["error"]["code"]) == (429, "overloaded")
        assert "a first token within 0.2 s would take 10" in body["error"]["message"]
        assert 9 <= int(headers["retry-after"]) <= 11
        assert 9_000 <= int(headers["retry-after-ms"]) <= 11_000
        assert served.ledger.rows[-1].usd == 0  # type: ignore[union-attr]
        patient = asyncio.create_task(post(served, ask("third"), **{"x-headway-slo": "batch"}))
        late = asyncio.create_task(post(served, ask("fourth"), **{"x-llm-d-slo-ttft-ms": "60000"}))
        turn = asyncio.create_task(post(served, ask("turn 2"), **run))
        await until(lambda: len(served.gateway.queue) == 3)
        served.workers["nano-0"].release()
        assert [status for status, *_ in await asyncio.gather(first, patient, late, turn)] == [200] * 4


async def test_request_without_a_worker_gets_no_worker_instead_of_overloaded(tmp_path: Path) -> None:
    async with serve(tmp_path, workers={"nano-0": fake("nano")}, route="on_overload: shed", more=SLO) as served:
        await served.workers["nano-0"].stop()
        await until(lambda: not served.gateway.fleet.clients["nano-0"].healthy)
        status, body, _ = await post(served, ask())
        assert (status, body["error"]["code"]) == (503, "no_worker")


async def test_request_that_misses_its_slo_is_answered_by_another_tier_on_a_degrade_route(tmp_path: Path) -> None:
    workers = {"pico-0": fake("pico"), "nano-0": fake("nano", max_sequences=1)}
    async with serve(tmp_path, workers=workers, route="on_overload: degrade", more=SLO) as served:
        assert (await post(served, ask("before")))[1]["usage"]["headway"]["tier"] == "large"
        first = await busy(served, "nano-0")
        status, body, headers = await post(served, ask("second"))
        assert (status, body["usage"]["headway"]["tier"]) == (200, "small")
        assert headers["x-headway-reason"] == "degraded"
        workers["nano-0"].release()
        assert (await first)[0] == 200


async def test_late_request_goes_to_another_device_before_it_is_shed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    route = "on_overload: shed, quality_bar: 0, mistake_cost: 1"
    workers = {"pico-0": fake("pico"), "nano-0": fake("nano", max_sequences=1)}
    async with serve(tmp_path, workers=workers, route=route, more=SLO) as served:
        first = await busy(served, "nano-0")
        same = await post(served, ask("on the same device"))
        monkeypatch.setattr(served.gateway.dispatcher, "_devices", {"pico-0": "one", "nano-0": "other"})
        other = await post(served, ask("on another one"))
        workers["nano-0"].release()
        assert (await first)[0] == 200
        assert (same[0], same[1]["error"]["code"]) == (429, "overloaded")
        assert (other[0], other[1]["usage"]["headway"]["worker"]) == (200, "pico-0")
        bodies = {row.id: json.loads(row.body) for row in served.ledger.rows if isinstance(row, DecisionRow)}
        decision = bodies[other[1]["usage"]["headway"]["decision_id"]]
        assert decision["rejected_by_reason"] == {"breaks_slo": 1}


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"x-headway-slo": "batch"}, 200, ""),
        ({"x-headway-slo": "express"}, 403, "stricter"),
        ({"x-headway-slo": "agent"}, 200, ""),
        ({"x-headway-slo": "soon"}, 400, "there is no SLO class"),
        ({"x-llm-d-slo-ttft-ms": "-1"}, 400, "milliseconds"),
        ({"x-llm-d-slo-ttft-ms": "soon"}, 400, "milliseconds"),
    ],
)
async def test_stricter_slo_class_needs_a_permission(tmp_path: Path, headers: dict[str, str], status: int, said: str) -> None:
    slo = "slo: {express: {ttft_s: 0.05}, interactive: {ttft_s: 0.2}, agent: {ttft_s: 0.4}, batch: {deadline_s: 3600}}"
    more = f"{slo}\ntenants: {{acme: {{keys: [one]}}, right: {{keys: [two], slo: [express]}}}}"
    async with serve(tmp_path, more=more) as served:
        got, body, _ = await post(served, ask(), authorization="Bearer one", **headers)
        assert got == status
        assert said in body.get("error", {}).get("message", "")
        if status == 403:
            assert (await post(served, ask(), authorization="Bearer two", **headers))[0] == 200


async def test_full_queue_evicts_for_a_turn_of_an_admitted_run(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=1)
    async with serve(tmp_path, workers={"nano-0": worker}, more="limits: {max_queued_requests: 1}") as served:
        run = {"x-headway-run-id": "begun"}
        assert (await post(served, ask("turn 1"), **run))[0] == 200
        first = await busy(served, "nano-0")
        waiting = asyncio.create_task(post(served, ask("new")))
        await until(lambda: len(served.gateway.queue) == 1)
        turn = asyncio.create_task(post(served, ask("turn 2"), **run))
        status, body, _ = await waiting
        assert (status, "go first" in body["error"]["message"]) == (429, True)
        worker.release()
        assert [status for status, *_ in await asyncio.gather(first, turn)] == [200, 200]


@pytest.mark.parametrize("limit", ["max_queued_tokens: 5", "max_queued_bytes: 20"])
async def test_the_queue_is_bounded_in_tokens_and_bytes(tmp_path: Path, limit: str) -> None:
    worker = fake("nano", max_sequences=1)
    async with serve(tmp_path, workers={"nano-0": worker}, more=f"limits: {{{limit}}}") as served:
        first = await busy(served, "nano-0")
        waiting = asyncio.create_task(post(served, ask("one that fits")))
        await until(lambda: len(served.gateway.queue) == 1)
        status, body, _ = await post(served, ask("one more"))
        assert (status, "which is the limit" in body["error"]["message"]) == (429, True)
        worker.release()
        assert [status for status, *_ in await asyncio.gather(first, waiting)] == [200, 200]


async def test_a_service_tier_asks_for_the_class_that_the_policy_gives_it(tmp_path: Path) -> None:
    slo = "slo: {express: {ttft_s: 0.05}, interactive: {ttft_s: 0.2}, batch: {deadline_s: 3600}}"
    tiers = "service_tiers: {flex: batch, priority: express}"
    more = f"{slo}\n{tiers}\ntenants: {{acme: {{keys: [one]}}, right: {{keys: [two], slo: [express]}}}}"
    async with serve(tmp_path, more=more) as served:

        async def tried(tier: str, key: str = "one", **headers: str) -> tuple[int, dict[str, Any], str]:
            status, body, _ = await post(served, ask(service_tier=tier), authorization=f"Bearer {key}", **headers)
            return status, body, served.ledger.rows[-2].slo if status == 200 else ""  # type: ignore[union-attr]

        status, body, slo_class = await tried("flex")
        assert (status, body["service_tier"], slo_class) == (200, "flex", "batch")
        for tier in ("auto", "default"):
            status, body, slo_class = await tried(tier)
            assert (status, body["service_tier"], slo_class) == (200, "default", "interactive")
        status, body, _ = await tried("priority")
        assert (status, body["error"]["code"], body["error"]["param"]) == (403, "not_allowed", "service_tier")
        assert '"priority", which here is the class "express" and stricter than "interactive"' in body["error"]["message"]
        status, body, slo_class = await tried("priority", "two")
        assert (status, body["service_tier"], slo_class) == (200, "priority", "express")
        assert (await tried("priority", **{"x-headway-slo": "batch"}))[2] == "batch"
        assert (await tried("scale"))[0] == 400
        assert "service_tier" not in (await post(served, ask(), authorization="Bearer one"))[1]
        async with served.client("two") as client:
            stream = await client.chat.completions.create(**ask(service_tier="flex", stream=True))
            assert {chunk.service_tier async for chunk in stream} == {"flex"}
            response = await client.responses.create(model="auto", input="hi", max_output_tokens=4, service_tier="flex")
            assert response.service_tier == "flex"
            response = await client.responses.create(model="auto", input="hi", max_output_tokens=4)
            assert response.service_tier == "default"


async def test_a_service_tier_that_the_policy_does_not_know_is_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        status, body, _ = await post(served, ask(service_tier="flex"))
        assert (status, body["error"]["code"], body["error"]["param"]) == (400, "unsupported_parameter", "service_tier")
        assert "ask for auto, default" in body["error"]["message"]


async def test_batch_takes_a_reserved_seat_only_where_it_is_owed_a_start(tmp_path: Path) -> None:
    more = "slo: {interactive: {ttft_s: 30}, batch: {deadline_s: 3600}}\nscheduling: {batch_share: 0.6}"
    async with serve(tmp_path, workers={"nano-0": fake("nano", max_sequences=16)}, more=more) as served:
        worker = served.workers["nano-0"]
        worker.hold()
        posted = [asyncio.create_task(post(served, ask(f"question {number}"))) for number in range(14)]
        await until(lambda: worker.num_live == 14)
        batch = {"x-headway-slo": "batch"}
        posted += [asyncio.create_task(post(served, ask(f"batch {number}"), **batch)) for number in range(3)]
        await until(lambda: len(served.gateway.queue) == 3)
        posted.append(asyncio.create_task(post(served, ask("one more"))))
        await until(lambda: worker.num_live == 16)
        assert len(served.gateway.queue) == 2
        worker.release()
        assert [status for status, *_ in await asyncio.gather(*posted)] == [200] * 18


async def test_request_of_a_flow_being_shed_is_refused_without_tokenizing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.scheduling.shed_gate.SHEDDING_S", 60.0)
    async with serve(
        tmp_path, workers={"nano-0": fake("nano", max_sequences=1)}, route="on_overload: shed", more=SLO
    ) as served:
        preparer, tokenized = served.gateway.pipeline.preparer, list[str]()
        encode = preparer.encoder.encode

        async def recorded(policy: Policy, request: Request, *, chain: str, tenant: str) -> dict[str, Prompt]:
            tokenized.append(request.messages[-1].content)
            return await encode(policy, request, chain=chain, tenant=tenant)

        preparer.encoder.encode = recorded  # type: ignore[method-assign]
        run = {"x-headway-run-id": "begun"}
        assert (await post(served, ask("turn 1"), **run))[0] == 200
        first = await busy(served, "nano-0")
        answers = [await post(served, ask(f"question {number}")) for number in range(EVALUATE_EVERY + 1)]
        assert [status for status, *_ in answers] == [429] * (EVALUATE_EVERY + 1)
        assert all("a first token within 0.2 s would take" in body["error"]["message"] for _, body, _ in answers)
        assert all(9 <= int(headers["retry-after"]) <= 11 for *_, headers in answers)
        assert tokenized[2:] == ["question 0", f"question {EVALUATE_EVERY}"]
        turn = asyncio.create_task(post(served, ask("turn 2"), **run))
        patient = asyncio.create_task(post(served, ask("patient"), **{"x-headway-slo": "batch"}))
        await until(lambda: len(served.gateway.queue) == 2)
        served.workers["nano-0"].release()
        assert [status for status, *_ in await asyncio.gather(first, turn, patient)] == [200] * 3
        async with served.http.get(f"{served.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
            missed = next(line for line in lines if 'headway_slo_total{met="no",slo="inter' in line)
            assert float(missed.split()[-1]) >= EVALUATE_EVERY + 1
