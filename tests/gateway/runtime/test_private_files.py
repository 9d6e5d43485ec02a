import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.ledger.ledger import SqliteLedger
from gateway.ledger.store import Store
from gateway.runtime.private_files import make_private
from gateway.telemetry.span_export import open_spans
from tests.builders import policy_text
from tests.gateway.ledger.test_ledger import REQUEST


@pytest.fixture(autouse=True)
def lax_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_ledger_and_its_folder_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "inner" / "ledger.db"
    ledger = SqliteLedger(path)
    ledger.record(REQUEST)
    deadline = time.monotonic() + 10
    while not ledger.read("SELECT 1 FROM requests") and time.monotonic() < deadline:
        time.sleep(0.01)
    modes = {file.name: mode(file) for file in path.parent.iterdir()}
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    ledger.close()
    assert mode(path.parent) == mode(path.parent.parent) == 0o700


def test_ledger_that_others_could_read_is_named_once_and_made_private(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.db"
    Store(str(path)).close()
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        SqliteLedger(path).close()
    assert mode(path) == 0o600
    assert [record.getMessage() for record in caplog.records if "ledger.db" in record.getMessage()] == [
        "ledger.db could be read by other users of this machine: its mode is 0600 now"
    ]


def test_folder_that_others_may_write_to_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o777)
    make_private(tmp_path / "file")
    assert "set its mode to 0700" in caplog.text


def test_spans_are_private(tmp_path: Path) -> None:
    open_spans(f"file:{tmp_path}/spans.jsonl", sample=1.0).close()
    assert mode(tmp_path / "spans.jsonl") == 0o600
    make_private(tmp_path / "audit" / "log.jsonl")
    assert mode(tmp_path / "audit") == 0o700


def test_key_store_that_a_command_creates_is_private(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text("  w: {model: pico, device: cpu}", more="tenants: {red: {}}"))
    ledger = tmp_path / "keys.db"
    main(["keys", "create", "--tenant", "red", "--policy", str(policy), "--ledger", str(ledger)], {})
    assert mode(ledger) == 0o600
