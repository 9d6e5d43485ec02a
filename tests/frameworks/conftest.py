"""The clients run here, in a venv of their own; the gateway in another process, with the interpreter of HEADWAY_PYTHON."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("HEADWAY_PYTHON")

if PYTHON is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    assert PYTHON
    command = [PYTHON, "-m", "tests.frameworks.serve"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), "the gateway did not start"
        yield address
        process.stdin.close()
