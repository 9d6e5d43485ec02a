"""A real OTLP receiver, Arize Phoenix, shows the runs of the demo: their trees, sessions, tokens and cost.

HEADWAY_PHOENIX names its program, which lives in a venv of its own (`make test-phoenix`), or the address of a fresh one.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.browser import CHROMIUM, browser
from tests.served import free_port

ROOT = Path(__file__).parents[2]
PHOENIX = os.environ.get("HEADWAY_PHOENIX")
PICTURE = os.environ.get("HEADWAY_PHOENIX_PICTURE")
"""Where to keep a picture of Phoenix with the runs in it."""
OTLP = find_spec("opentelemetry.exporter") and find_spec("opentelemetry.exporter.otlp")
START_S, DEMO_S, ARRIVAL_S = 400, 400, 60

pytestmark = [
    pytest.mark.skipif(PHOENIX is None, reason="HEADWAY_PHOENIX is not set: make test-phoenix"),
    pytest.mark.skipif(not OTLP, reason="the OTLP exporter is not installed: pip install 'headway[otlp]'"),
    pytest.mark.timeout(START_S + DEMO_S + ARRIVAL_S + 60),
]

Span = dict[str, Any]


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PHOENIX
    if PHOENIX.startswith("http"):
        yield PHOENIX.rstrip("/")
        return
    folder, port = tmp_path_factory.mktemp("phoenix"), free_port()
    environment = {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PHOENIX, "serve"], cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(f"{url}/healthz", process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "Phoenix ended before it was ready"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"Phoenix was not ready after {START_S} s")


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def spans_of(url: str) -> list[Span]:
    found: list[Span] = read(f"{url}/v1/projects/default/spans?limit=1000")["data"]
    return found


def test_demo_runs_appear_with_session_tokens_and_cost(phoenix: str) -> None:
    environment = {
        "HEADWAY_PORT": str(free_port()),
        "OTEL_EXPORTER_OTLP_ENDPOINT": phoenix,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
    }
    command = [sys.executable, "-m", "gateway.cli", "demo", "--exit"]
    demo = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=DEMO_S)
    assert "This program cost $" in demo.stdout, demo.stderr[-2000:]

    deadline = time.monotonic() + ARRIVAL_S
    while not (spans := spans_of(phoenix)) and time.monotonic() < deadline:
        time.sleep(1)
    traces: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span["context"]["trace_id"]].append(span)
    assert len(traces) >= 7, "the demo has seven answers at least"
    for some in traces.values():
        assert_tree(some)
    runs = {span["attributes"]["session.id"] for span in spans if "session.id" in span["attributes"]}
    sessions = {one["session_id"] for one in read(f"{phoenix}/v1/projects/default/sessions?limit=100")["data"]}
    assert len(runs) == 3 and runs <= sessions


def assert_tree(spans: list[Span]) -> None:
    """One server span, one chat span below it that alone has tokens and cost, its stages below that."""
    by_id = {span["context"]["span_id"]: span for span in spans}
    root = next(span for span in spans if span["parent_id"] not in by_id)
    chat = next(span for span in spans if span["name"].startswith("chat "))
    assert root["name"].startswith("POST /v1/") and chat["parent_id"] == root["context"]["span_id"]
    stages = [span for span in spans if span is not root and span is not chat]
    assert all(span["parent_id"] == chat["context"]["span_id"] and span["name"].startswith("headway.") for span in stages)
    told = [span for span in spans if "gen_ai.usage.input_tokens" in span["attributes"]]
    assert told == [chat]
    attributes = chat["attributes"]
    assert attributes["gen_ai.usage.input_tokens"] > 0 and attributes["gen_ai.usage.output_tokens"] > 0
    assert attributes["gen_ai.usage.cost"] > 0
    assert attributes["session.id"] == attributes["gen_ai.conversation.id"] == root["attributes"]["session.id"]


@pytest.mark.skipif(CHROMIUM is None or PICTURE is None, reason="no Chromium, or no picture is asked for")
async def test_phoenix_page_renders(phoenix: str, tmp_path: Path) -> None:
    assert PICTURE
    project = read(f"{phoenix}/v1/projects/default")["data"]["id"]
    async with browser(tmp_path) as page:
        await page.look(width=1280, height=640, dark=False)
        await page.open(f"{phoenix}/projects/{project}/traces")
        await page.until("document.body && document.body.innerText.includes('POST /v1/')", timeout_s=120)
        await page.picture(Path(PICTURE))
