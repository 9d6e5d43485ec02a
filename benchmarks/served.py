"""Runs a gateway as users do (`headway serve`) for the duration of a benchmark."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from benchmarks.report import ROOT, progress

_START_S = 180.0


def default_policy() -> str:
    """Return the text of `policies/default.yaml` with absolute paths."""
    text = (ROOT / "policies" / "default.yaml").read_text().replace("../backends", str(ROOT / "backends"))
    return text.replace("router: quality.json", f"router: {ROOT / 'policies' / 'quality.json'}")


@contextmanager
def gateway(
    policy: Path = ROOT / "policies" / "default.yaml",
    environment: Mapping[str, str] = MappingProxyType({}),
    *,
    command: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the base URL of a ready gateway on a free loopback port. It and its workers are stopped afterwards.

    `command` runs another server in place of the policy.
    """
    port = free_port()
    command = command or [sys.executable, "-m", "gateway.cli", "serve", "--policy", str(policy)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"HEADWAY_PORT": str(port)} | dict(environment)) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(f"{url}/readyz", process)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait for readiness. Raises RuntimeError if the process ends first, or after three minutes."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    progress(f"{url} did not become ready")
    raise RuntimeError(f"{url} was not ready after {_START_S:.0f} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
