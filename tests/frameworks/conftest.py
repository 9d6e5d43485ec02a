"""The clients run here, in a venv of their own; gateways in other processes, with the interpreter of HEADWAY_PYTHON."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("HEADWAY_PYTHON")
POLICY = f"""
version: 1
devices: {{cpu: {{usd_per_hour: 0.20}}}}
tiers: [large]
models: {{nano: {{path: {ROOT / "backends" / "zoo" / "nano"}, tier: large}}}}
workers: {{nano-0: {{model: nano, device: cpu}}}}
routes: [{{name: default, candidates: [large]}}]
"""

if PYTHON is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """In front of a scripted worker, for what nano cannot do."""
    assert PYTHON
    command = [PYTHON, "-m", "tests.frameworks.serve"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), "the gateway did not start"
        yield address
        process.stdin.close()


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As `headway serve` starts it, with nano: without a temperature its answers are greedy, the same every time."""
    assert PYTHON
    policy = tmp_path_factory.mktemp("nano") / "policy.yaml"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    policy.write_text(f"{POLICY}listen: {{port: {port}}}\n")
    command = [PYTHON, "-m", "gateway.cli", "serve", "--policy", str(policy)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = next((line for line in process.stderr if line.startswith("ready on http")), "")
        assert said, "the gateway did not start"
        yield said.split()[-1]
        process.terminate()
        process.stderr.read()
