"""The process: signals end everything, and a bad start says what to do."""

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.builders import policy_text
from tests.served import free_port

SERVER = """
import os, sys
from pathlib import Path
from gateway.policy.load import load_policy
from gateway.commands.serve import run
from gateway.settings import read_settings

def command(name, worker, model, socket, threads):
    fake = [sys.executable, "-m", "tests.fake_worker", "--step-s", "0.01", "--exit-with-parent", "--name", name]
    print("starting", name, file=sys.stderr)
    return [*fake, "--listen", f"unix://{socket}", "--model-dir", str(model)]

run(load_policy(Path(sys.argv[1]), {}), read_settings(os.environ), os.environ, command=command)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_gateway_its_streams_and_its_workers(tmp_path: Path, number: signal.Signals) -> None:
    policy, port = tmp_path / "policy.yaml", free_port()
    policy.write_text(policy_text("  nano-0: {model: nano, device: cpu}", more=f"listen: {{port: {port}}}"))
    env = {"HEADWAY_STOP_GRACE_S": "0.2", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen([sys.executable, "-c", SERVER, str(policy)], env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("ready on"):
                break
        children = _children(process.pid)
        assert children
        body = b'{"model":"auto","stream":true,"max_tokens":4000,"messages":[{"role":"user","content":"hi"}]}'
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", data=body) as answer:
            assert answer.readline().startswith(b"data: ")
            process.send_signal(number)
            rest = answer.read()
        assert b'"error"' in rest
        assert process.wait(20) == 0
        process.stderr.read()
    for _ in range(500):
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            return
        time.sleep(0.01)
    raise AssertionError("workers outlived their gateway")


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]
