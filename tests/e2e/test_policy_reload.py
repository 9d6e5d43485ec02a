"""A running gateway takes over what its policy's files become, whole or not at all, and keeps who changed what."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.served import free_port

TEXT = """
version: 1
listen: {{port: {port}}}
include: [routes.yaml]
tiers: [large]
upstreams:
  vendor: {{url: "http://127.0.0.1:9/v1", model: big, tier: large, prices: {{input: 2, output: 10}}}}
"""
ROUTES = "routes: [{{name: default, candidates: [large], quality_bar: {bar}}}]\n"
WAIT_S = 30.0


class Running(NamedTuple):
    process: "subprocess.Popen[bytes]"
    url: str
    routes: Path
    audit: Path

    def bar(self) -> float:
        """Of the policy that holds; the ledger's writer may still have it in hand."""
        with urllib.request.urlopen(f"{self.url}/v1/headway/policy") as answer:
            policies = json.load(answer)["policies"]
        bar: float = policies[0]["body"]["routes"][0]["quality_bar"] if policies else -1.0
        return bar

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    port, routes = free_port(), tmp_path / "routes.yaml"
    (tmp_path / "policy.yaml").write_text(TEXT.format(port=port))
    routes.write_text(ROUTES.format(bar=0.5))
    command = [sys.executable, "-m", "gateway.cli", "serve", "--policy", str(tmp_path / "policy.yaml")]
    env = os.environ | {"HEADWAY_LEDGER": str(tmp_path / "ledger.db")}
    with subprocess.Popen(command, env=env) as process:
        try:
            until(lambda: listens(port))
            yield Running(process, f"http://127.0.0.1:{port}", routes, tmp_path / "ledger.policy.jsonl")
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_valid_change_is_applied_and_an_invalid_one_is_not(running: Running) -> None:
    until(lambda: running.bar() == 0.5)
    running.routes.write_text(ROUTES.format(bar=0.75))
    until(lambda: running.bar() == 0.75)
    running.routes.write_text("routes: [{name: default, candidates: [enormous], quality_bar: 0.1}]\n")
    until(lambda: len(running.audited()) == 2)
    assert running.bar() == 0.75
    taken, refused = running.audited()
    assert (taken["accepted"], taken["who"]) == (True, "file")
    assert any("quality_bar" in change and "0.75" in change for change in taken["changes"])
    assert not refused["accepted"]
    assert any("enormous" in problem and "routes.yaml" in problem for problem in refused["problems"])
    assert refused["hash"] == refused["hash_before"] == taken["hash"] != taken["hash_before"]


def test_sighup_applies_a_change_that_polling_cannot_see(running: Running) -> None:
    until(lambda: running.bar() == 0.5)
    stamp = running.routes.stat()
    running.routes.write_text(ROUTES.format(bar=0.2))
    os.utime(running.routes, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.bar() == 0.2)
    (kept,) = running.audited()
    assert (kept["accepted"], kept["who"]) == (True, "signal")
