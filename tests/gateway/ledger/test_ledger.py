import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.ledger import store
from gateway.ledger.ledger import MemoryLedger, SqliteLedger
from gateway.ledger.rows import (
    KINDS,
    DecisionRow,
    DeviceRow,
    HoldRow,
    PolicyRow,
    RequestRow,
    ResponseRow,
    Row,
    RunRow,
    table,
)
from gateway.ledger.store import MIGRATIONS, ROWS_A_STATEMENT, Store

REQUEST = RequestRow(
    decision="d1",
    at=1.5,
    tenant="t",
    run="r",
    chain="c",
    asked="auto",
    model="m",
    worker="w",
    route="default",
    reason="cheapest_good_enough",
    status="stop",
    prompt_tokens=10,
    cached_tokens=4,
    output_tokens=2,
    queue_s=0.0,
    ttft_s=0.1,
    total_s=0.2,
    device_s=0.05,
    usd=1e-6,
    saved_usd=1e-7,
    all_large_usd=4e-6,
    slo_met=True,
)
RUN = RunRow(
    run="r",
    tenant="t",
    source="new",
    first_seen=0.0,
    last_seen=1.0,
    turns=1,
    prompt_tokens=10,
    cached_tokens=4,
    output_tokens=2,
    device_s=0.05,
    usd=1e-6,
    saved_usd=0.0,
    all_large_usd=0.0,
)


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_recorded_rows_are_written_at_close(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.db"
    ledger = SqliteLedger(path)
    for number in range(2500):
        assert ledger.record(msgspec.structs.replace(REQUEST, decision=f"d{number}"))
    ledger.record(DecisionRow(id="d1", at=1.0, body=b"{}"))
    ledger.record(RUN)
    ledger.record(msgspec.structs.replace(RUN, turns=2))
    ledger.close()
    assert rows(path, "SELECT count(*), sum(usd), min(slo_met) FROM requests")[0] == (2500, pytest.approx(2500e-6), 1)
    assert rows(path, "SELECT run, turns FROM runs") == [("r", 2)]
    assert rows(path, "SELECT id, body FROM decisions") == [("d1", b"{}")]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("number", [1, ROWS_A_STATEMENT - 1, ROWS_A_STATEMENT, ROWS_A_STATEMENT + 1, 3 * ROWS_A_STATEMENT])
def test_batch_of_any_length_is_written_whole_and_in_order(tmp_path: Path, number: int) -> None:
    one = Store(str(tmp_path / "ledger.db"))
    one.insert([msgspec.structs.replace(REQUEST, decision=f"d{turn}") for turn in range(number)])
    one.insert([msgspec.structs.replace(RUN, turns=turn) for turn in range(number)])
    one.close()
    kept = rows(tmp_path / "ledger.db", "SELECT decision FROM requests ORDER BY rowid")
    assert kept == [(f"d{turn}",) for turn in range(number)]
    assert rows(tmp_path / "ledger.db", "SELECT run, turns FROM runs") == [("r", number - 1)]


def test_reopened_ledger_continues(tmp_path: Path) -> None:
    for _ in range(2):
        ledger = SqliteLedger(tmp_path / "ledger.db")
        ledger.record(REQUEST)
        ledger.close()
    assert rows(tmp_path / "ledger.db", "SELECT count(*) FROM requests") == [(2,)]


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(sqlite3.DatabaseError, match="version 99"):
        SqliteLedger(path)


def test_row_that_cannot_be_written_is_counted_and_the_rest_continues(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    other = sqlite3.connect(path)
    other.execute("DROP TABLE decisions")
    other.close()
    ledger.record(DecisionRow(id="d1", at=1.0, body=b"{}"))
    ledger.close()
    assert ledger.dropped == 1
    assert "decisions" in ledger.error


FULL = """
import resource, signal, sys, time
from pathlib import Path
from gateway.ledger.ledger import SqliteLedger
from gateway.ledger.rows import DecisionRow

ledger = SqliteLedger(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # no file of this process may be larger
for number in range(100):
    assert ledger.record(DecisionRow(id=f"lost-{number}", at=1.0, body=bytes(10_000)))
while not ledger.dropped:
    time.sleep(0.01)
print(ledger.error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
while ledger._rows:
    time.sleep(0.01)
time.sleep(0.5)
assert ledger.record(DecisionRow(id="after", at=1.0, body=b""))
ledger.close()
print(ledger.dropped)
"""


def test_full_disk_loses_only_counted_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    error, dropped = run.stdout.splitlines()
    assert error in ("disk I/O error", "database or disk is full")
    assert 0 < int(dropped) <= 100
    kept = rows(path, "SELECT count(*) FROM decisions WHERE id LIKE 'lost-%'")[0][0]
    assert kept == 100 - int(dropped)
    assert rows(path, "SELECT count(*) FROM decisions WHERE id = 'after'") == [(1,)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("close_first", [False, True])
def test_rows_behind_a_lock_stay_in_order_and_are_written_later(tmp_path: Path, close_first: bool) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path, busy_s=0.01)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    for number in range(3):
        ledger.record(DecisionRow(id=f"d{number}", at=1.0, body=b"{}"))
    until(lambda: "locked" in ledger.error)
    for number in range(3, 5):
        ledger.record(DecisionRow(id=f"d{number}", at=1.0, body=b"{}"))
    closing = threading.Thread(target=ledger.close)
    if close_first:
        closing.start()
    other.execute("COMMIT")
    if not close_first:
        until(lambda: bool(rows(path, "SELECT 1 FROM decisions")))
        closing.start()
    closing.join()
    other.close()
    assert rows(path, "SELECT id FROM decisions ORDER BY rowid") == [(f"d{number}",) for number in range(5)]
    assert ledger.dropped == 0


def test_a_ledger_that_closes_behind_a_lock_sets_its_rows_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ledger.ledger.MAX_CLOSE_S", 0.0)
    ledger = SqliteLedger(tmp_path / "ledger.db", busy_s=0.01)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.record(REQUEST)
    ledger.close()
    other.close()
    assert ledger.dropped == 1 and ledger.rejected.path.read_text().count("\n") == 1


def test_rows_that_cannot_be_made_do_not_end_the_writing(tmp_path: Path) -> None:
    class Broken:
        def rows(self) -> list[Row]:
            raise ValueError("no row")

    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    ledger.record(Broken())
    deadline = time.monotonic() + 10
    while not ledger.dropped and time.monotonic() < deadline:
        time.sleep(0.01)
    ledger.record(REQUEST)
    ledger.close()
    assert (ledger.dropped, ledger.error) == (1, "no row")
    assert rows(tmp_path / "ledger.sqlite", "SELECT count(*) FROM requests") == [(1,)]


def test_reservation_row_is_deleted_with_its_request_row(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    hold = HoldRow(request="r1", at=1.0, route="default", tenant="t", key_id="", run="r", usd=0.1, tokens=5, turns=1)
    ledger = SqliteLedger(path)
    ledger.record(hold)
    ledger.record(msgspec.structs.replace(hold, request="r2"))
    ledger.record(msgspec.structs.replace(hold, request="r3"))
    ledger.record(msgspec.structs.replace(REQUEST, request="r2"))  # in the same batch
    ledger.close()
    ledger = SqliteLedger(path)
    assert rows(path, "SELECT request FROM holds ORDER BY request") == [("r1",), ("r3",)]
    ledger.record(msgspec.structs.replace(REQUEST, request="r1"))
    ledger.close()
    assert rows(path, "SELECT request FROM holds") == [("r3",)]


def test_stored_responses_are_bounded_for_each_tenant_and_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_RESPONSES", 3)
    monkeypatch.setattr(store, "MAX_RESPONSE_BYTES", 100)
    path = tmp_path / "ledger.db"

    def response(tenant: str, number: int, size: int = 10, body: bytes = b"{}") -> ResponseRow:
        return ResponseRow(tenant=tenant, id=f"r{number}", at=float(number), size=size, messages=b"m", body=body)

    def kept() -> list[tuple[Any, ...]]:
        return rows(path, "SELECT tenant, id FROM responses ORDER BY tenant, at")

    for batch in ([("a", 1), ("b", 1), ("a", 2)], [("a", 3), ("a", 4)]):
        ledger = SqliteLedger(path)
        for tenant, number in batch:
            ledger.record(response(tenant, number))
        ledger.close()
    assert kept() == [("a", "r2"), ("a", "r3"), ("a", "r4"), ("b", "r1")]
    ledger = SqliteLedger(path)
    ledger.record(response("a", 5, size=85))
    ledger.record(response("b", 1, body=b""))
    ledger.close()
    assert kept() == [("a", "r4"), ("a", "r5")]


def test_the_memory_ledger_keeps_the_last() -> None:
    ledger = MemoryLedger(max_rows=2)
    for number in range(3):
        assert ledger.record(DecisionRow(id=str(number), at=0.0, body=b""))
    ledger.close()
    assert [row.id for row in ledger.rows if isinstance(row, DecisionRow)] == ["1", "2"]


def test_memory_ledger_answers_reports() -> None:
    ledger = MemoryLedger(max_rows=3)
    for number in range(12):
        ledger.record(msgspec.structs.replace(REQUEST, decision=f"d{number}"))
        (last,) = ledger.read("SELECT decision FROM requests ORDER BY rowid DESC LIMIT 1")
        assert last == {"decision": f"d{number}"}
    assert ledger.read("SELECT count(*) AS n FROM requests")[0]["n"] <= 6
    ledger.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_its_column(kind: type[Row], tmp_path: Path) -> None:
    SqliteLedger(tmp_path / "ledger.db").close()
    columns = [name for _, name, *_ in rows(tmp_path / "ledger.db", f"PRAGMA table_info({table(kind)})")]
    assert columns == list(kind.__struct_fields__)


def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    old = sqlite3.connect(path)
    old.executescript(f"{MIGRATIONS[0]} PRAGMA user_version=1;")
    old.execute(f"INSERT INTO requests VALUES ({', '.join('?' * 22)})", msgspec.structs.astuple(REQUEST)[:22])
    old.commit()
    old.close()
    ledger = SqliteLedger(path)
    ledger.record(REQUEST)
    ledger.close()
    assert rows(path, "SELECT decision, outcome, num_attempts FROM requests") == [("d1", "ok", 1)] * 2
    assert rows(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]


def test_old_rows_are_deleted_and_the_policy_in_force_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path, keep_days=1.0)
    idle = DeviceRow(at=0.0, worker="w", model="m", busy_s=1.0, idle_s=0.0, charged_usd=1.0, unattributed_usd=0.0, idle_usd=0.0)
    for row in (REQUEST, RUN, idle, PolicyRow(at=1.0, digest="a", body=b""), PolicyRow(at=2.0, digest="b", body=b"")):
        ledger.record(row)
    ledger.record(msgspec.structs.replace(REQUEST, at=time.time(), decision="young"))
    ledger.close()
    assert rows(path, "SELECT decision FROM requests") == [("young",)]
    assert rows(path, "SELECT digest FROM policies") == [("b",)]
    assert rows(path, "SELECT count(*) FROM device_time") == rows(path, "SELECT count(*) FROM runs") == [(0,)]


_WRITER = """
import sys, time, msgspec
from pathlib import Path
from tests.gateway.ledger.test_ledger import REQUEST
from gateway.ledger.ledger import SqliteLedger
ledger = SqliteLedger(Path(sys.argv[1]))
while True:
    for _ in range(200):
        ledger.record(REQUEST)
    print(len(ledger.read("SELECT 1 FROM requests")), flush=True)
    time.sleep(0.01)
"""


def test_killed_writer_leaves_a_consistent_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], cwd=root, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        seen = 0
        while seen < 2000:
            seen = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
    SqliteLedger(path).close()
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT count(*) FROM requests")[0][0] >= seen
