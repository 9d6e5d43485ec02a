"""A gateway that is killed: its clients see a cut stream, its workers end, and the next one knows what may have been spent."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ROOT, policy_text
from tests.gateway.http.test_server import SERVER
from tests.served import free_port

BUDGET = "budgets: {run: {per: run, tokens: 5000}}"


@contextmanager
def gateway(folder: Path, ledger: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    policy, port = folder / "policy.yaml", free_port()
    more = f"{BUDGET}\nlisten: {{port: {port}}}"
    policy.write_text(policy_text("  nano-0: {model: nano, device: cpu}", route="budgets: [run]", more=more))
    env = {"HEADWAY_LEDGER": str(ledger), "HEADWAY_STOP_GRACE_S": "0.2", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", SERVER, str(policy)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("ready on"):
                break
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.stderr.read()


def ask(url: str, **changes: Any) -> Any:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **changes}
    headers = {"x-headway-run-id": "job", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=60)


def held(ledger: Path) -> list[tuple[str, int, int]]:
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("SELECT run, tokens, turns FROM holds").fetchall()


def test_reservations_in_flight_survive_a_kill(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    with gateway(tmp_path, ledger) as (url, process):
        with ask(url, max_tokens=10) as answer:
            used = json.load(answer)["usage"]["total_tokens"]
        with ask(url, max_tokens=4000, stream=True) as answer:
            assert answer.readline().startswith(b"data: ")
            for _ in range(500):
                found = held(ledger)
                if [tokens > 4000 for _, tokens, _ in found] == [True]:
                    break  # and the first request's own is gone
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            with pytest.raises((IncompleteRead, ConnectionError)):
                answer.read()
    ((run, tokens, turns),) = found
    assert (run, turns) == ("job", 1) and tokens < 4100
    with gateway(tmp_path, ledger) as (url, _):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, max_tokens=4000)
        message = json.load(refused.value)["error"]["message"]
        assert refused.value.code == 429 and f"{5000 - used - tokens:,} tokens of 5,000 tokens left" in message
        with ask(url, max_tokens=10) as answer:
            assert answer.status == 200
