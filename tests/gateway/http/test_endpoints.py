import asyncio
import sys
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.cli import main
from gateway.ledger.rows import DecisionRow, RequestRow, RunRow
from gateway.telemetry.tracing import AtExport, SpanRecorder
from tests.builders import PICO
from tests.served import Served, ask, fake, serve, until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def get(served: Served, path: str) -> tuple[int, Any]:
    async with served.http.get(served.url + path) as answer:
        return answer.status, await answer.json()


async def test_gateway_is_live_ready_and_lists_its_models(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        assert await get(served, "/livez") == (200, {"status": "ok"})
        assert await get(served, "/readyz") == (200, {"status": "ready"})
        _, models = await get(served, "/v1/models")
        assert [model["id"] for model in models["data"]] == ["auto", "small", "large", "pico", "nano"]
        _, model = await get(served, "/v1/models/pico")
        assert model["tier"] == "small"


async def test_readyz_names_a_missing_local_worker(tmp_path: Path) -> None:
    def fails(*_: object) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('/secret/path is not there')"]

    workers = {"nano-0": fake("nano")}
    async with serve(tmp_path, workers=workers, local={"pico-0": "pico"}, command=fails, wait_for_local=False) as served:
        await until(lambda: served.gateway.fleet.supervisor.workers["pico-0"].restarts > 0)
        status, body = await get(served, "/readyz")
        assert status == 503
        assert body["missing"] == {"pico-0": "exited with 1"}
        assert (await served.chat())[0] == 200
        assert (await served.chat(ask(model="pico")))[0] == 503


async def test_an_answer_carries_its_decision_and_its_cost(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(model="pico")) as answer:
            body, headers = await answer.json(), answer.headers
        own = body["usage"]["headway"]
        assert headers["x-headway-decision-id"] == own["decision_id"]
        assert headers["x-headway-model"] == own["model"] == body["model"] == "pico"
        assert headers["x-headway-worker"] == own["worker"] == "pico-0"
        assert headers["x-headway-reason"] == own["reason"] == "asked_by_name"
        assert headers["x-headway-run-id"] == own["run_id"]
        assert headers["x-headway-cached-tokens"] == "0"
        # 3.6 dollars an hour are a tenth of a cent a second, of which each of two workers has half.
        assert abs(own["cost_usd"] - 0.0005 * own["device_s"]) < 1e-12
        assert abs(float(headers["x-headway-cost-usd"]) - own["cost_usd"]) < 1e-12
        assert {"queue_s", "ttft_s", "counterfactual_usd", "saved_usd", "cached_tokens", "tier"} <= own.keys()
        _, run = await get(served, f"/v1/headway/runs/{own['run_id']}")
        assert run["cost_usd"] == own["cost_usd"]
        assert run["turns"] == 1


async def test_explain_returns_a_decision_without_running_the_request(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        async with served.http.post(f"{served.url}/v1/headway/explain", json=ask(user="u-1")) as answer:
            body = await answer.json()
        assert body["decision"]["chosen"]["worker"] == "nano-0"
        assert body["decision"]["rejected"][0]["reason"] == "below_quality_bar"
        assert body["advisory"] == ["user"]
        assert not any(worker.submitted for worker in served.workers.values())
        assert len(served.gateway.runs) == 0


async def test_workers_endpoint_shows_residency_and_load(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        await served.chat(ask("many words " * 30))
        _, body = await get(served, "/v1/headway/workers")
        shown = {worker["name"]: worker for worker in body["workers"]}
        assert shown["pico-0"]["up"]
        assert shown["nano-0"]["load"]["cached_pages"] > 0
        assert str(PICO) not in str(body)


async def test_every_outcome_is_counted_once_in_metrics_ledger_and_spans(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    async with serve(tmp_path, spans=SpanRecorder(SimpleSpanProcessor(AtExport(exporter)))) as served:
        headers = {"traceparent": TRACEPARENT, "x-headway-run-id": "run-1"}
        async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(), headers=headers) as answer:
            body = await answer.json()
        await served.chat(ask(verbosity="low"))
        async with served.http.get(f"{served.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        assert 'headway_requests_total{error_code="",outcome="ok",status="200"} 1.0' in lines
        assert 'headway_requests_total{error_code="unsupported_parameter",outcome="rejected",status="400"} 1.0' in lines
        assert 'vllm:generation_tokens_total{model_name="nano"} 8.0' in lines
        assert 'vllm:e2e_request_latency_seconds_count{model_name="nano"} 1.0' in lines
        assert "run-1" not in "".join(lines)
        kept = [row for row in served.ledger.rows if isinstance(row, RequestRow | DecisionRow)]
        assert [type(row) for row in kept] == [RequestRow, DecisionRow, RequestRow]
        assert isinstance(kept[2], RequestRow) and (kept[2].outcome, kept[2].http_status, kept[2].usd) == ("rejected", 400, 0.0)
        (submitted,) = served.workers["nano-0"].submitted
    prefill, decode, chat, server, refused = exporter.get_finished_spans()
    assert (chat.name, server.name) == ("chat nano", "POST /v1/chat/completions")
    assert (prefill.name, decode.name) == ("headway.prefill", "headway.decode")
    assert prefill.parent == decode.parent == chat.context
    assert chat.context and submitted.traceparent == f"00-{chat.context.trace_id:032x}-{chat.context.span_id:016x}-01"
    assert not any("token" in key for span in (prefill, decode, server) for key in span.attributes or {} if "usage" in key)
    assert chat.parent == server.context
    assert f"{server.context.trace_id:032x}" in TRACEPARENT
    assert server.parent and f"{server.parent.span_id:016x}" in TRACEPARENT
    assert chat.attributes and chat.attributes["gen_ai.usage.output_tokens"] == 8
    assert chat.attributes["gen_ai.usage.cost"] == body["usage"]["headway"]["cost_usd"]
    assert chat.attributes["gen_ai.conversation.id"] == "run-1"
    assert refused.attributes and refused.attributes["error.type"] == "unsupported_parameter"


async def test_a_final_run_is_kept_in_the_ledger_and_forgotten(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        worker = served.workers["nano-0"]
        for final in ("false", "true"):
            headers = {"x-headway-run-id": "r9", "x-headway-run-final": final}
            async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(), headers=headers) as answer:
                assert answer.status == 200
        assert len(served.gateway.runs) == 0
        await until(lambda: bool(worker.retained) and worker.retained[-1].score == 0.0)
        assert {one.chain for one in worker.retained} == {"development:r9"}
        assert [one.score for one in worker.retained if one.score in (0.0, 1.0)] == [1.0, 0.0]
        (run,) = (row for row in served.ledger.rows if isinstance(row, RunRow))
        requests = [row for row in served.ledger.rows if isinstance(row, RequestRow)]
    assert (run.run, run.turns) == ("r9", 2)
    assert run.device_s == sum(row.device_s for row in requests)


async def test_live_runs_are_listed_with_the_field_that_named_them_to_their_tenant(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        for headers in ({"x-headway-run-id": "r1"}, {"x-claude-code-session-id": "c1"}, {"x-headway-run-id": "r1"}):
            async with served.http.post(f"{served.url}/v1/chat/completions", json=ask(), headers=headers) as answer:
                assert answer.status == 200
        _, listed = await get(served, "/v1/headway/runs")
        shown = await asyncio.to_thread(main, ["runs", "--url", served.url], {})
        one = await asyncio.to_thread(main, ["runs", "r1", "--url", served.url], {})
        none = await asyncio.to_thread(main, ["runs", "none-such", "--url", served.url], {})
    assert [(run["id"], run["source"], run["turns"]) for run in listed["runs"]] == [
        ("r1", "x-headway-run-id", 2),
        ("c1", "x-claude-code-session-id", 1),
    ]
    assert (shown, one, none) == (0, 0, 1)
