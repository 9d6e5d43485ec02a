"""A real Prometheus scrapes a gateway and a worker: every board's queries answer, and the rules are sound."""

import asyncio
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from backends.engine.engine import Engine
from backends.worker.address import parse_address
from backends.worker.worker import Worker
from tests.backends.fakes import FakeRunner, LetterDecoder, Ticks, hello, limits
from tests.dashboards.traffic import play
from tests.served import free_port, serve

FOLDER = Path(__file__).parents[2] / "dashboards"
RULES = FOLDER / "prometheus"
BOARDS = [board for board in sorted((FOLDER / "grafana").glob("*.json")) if board.stem != "gpu"]
"""GPU metrics are there only where a GPU is."""

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@needs_promtool
def test_rules_are_valid_and_fire_on_their_conditions() -> None:
    for command in (
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules_test.yaml"],
        ["check", "config", "prometheus.yaml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=RULES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_summary_and_an_action() -> None:
    for group in yaml.safe_load((RULES / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert {"summary", "action"} <= rule["annotations"].keys(), rule["alert"]
                assert rule["labels"]["severity"] in ("page", "ticket")


@needs_prometheus
async def test_every_query_of_every_board_and_rule_has_data(tmp_path: Path) -> None:
    of = limits()
    engine = Engine(FakeRunner(of), LetterDecoder(), of, clock_ns=Ticks(), rng=random.Random(0))
    worker = Worker(engine, hello(of), {}, token="t")
    worker_port = free_port()
    await worker.open(parse_address(f"tcp://127.0.0.1:{worker_port}", token="t"))
    try:
        async with serve(tmp_path) as served:
            gateway_port = int(served.url.rsplit(":", 1)[1])
            url, process = await _prometheus(tmp_path, gateway_port, worker_port)
            try:
                for _ in range(3):
                    await play(served.http, served.url, runs=2, turns=3)
                    await asyncio.sleep(1.2)
                await _all_answer(served.http, url)
            finally:
                process.terminate()
                await process.wait()
    finally:
        await worker.close()


async def _prometheus(folder: Path, gateway: int, worker: int) -> tuple[str, asyncio.subprocess.Process]:
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "headway-gateway", "static_configs": [{"targets": [f"127.0.0.1:{gateway}"]}]},
            {
                "job_name": "headway-worker",
                "static_configs": [{"targets": [f"127.0.0.1:{worker}"]}],
                "authorization": {"credentials": "t"},
            },
        ],
    }
    file = folder / "prometheus.yaml"
    file.write_text(json.dumps(config))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return f"http://127.0.0.1:{port}", process


async def _all_answer(http: aiohttp.ClientSession, url: str) -> None:
    missing = _queries()
    async with asyncio.timeout(60):
        while missing:
            await asyncio.sleep(0.5)
            missing = {query for query in missing if not await _answers(http, url, query)}
            if missing and not await _answers(http, url, "up == 1"):
                continue
            if missing and await _answers(http, url, "min(count_over_time(headway_runs[5m])) > 20"):
                raise AssertionError(f"no data for {sorted(missing)}")


def _queries() -> set[str]:
    """Boards' queries as they are; of rules every metric that they name, as most alerts have nothing to say."""
    boards = {
        target["expr"] for board in BOARDS for panel in json.loads(board.read_text())["panels"] for target in panel["targets"]
    }
    rules: list[dict[str, Any]] = [
        rule for group in yaml.safe_load((RULES / "rules.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    named = {name for rule in rules for name in re.findall(r"\b(?:headway|vllm|gen_ai)_[a-z0-9_]+", rule["expr"])}
    return boards | {name for name in named if not name.startswith("headway:")}


async def _answers(http: aiohttp.ClientSession, url: str, query: str) -> bool:
    try:
        async with http.get(f"{url}/api/v1/query", params={"query": query}) as answer:
            said = await answer.json()
    except aiohttp.ClientError:
        return False
    assert said["status"] == "success", (query, said)
    return bool(said["data"]["result"])
