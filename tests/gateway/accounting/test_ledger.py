import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.accounting.ledger import DecisionRow, MemoryLedger, RequestRow, RunRow, SqliteLedger

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


def test_what_was_recorded_is_kept_when_it_is_closed(tmp_path: Path) -> None:
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


def test_a_second_opening_goes_on(tmp_path: Path) -> None:
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


def test_what_cannot_be_written_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    other = sqlite3.connect(path)
    other.execute("DROP TABLE decisions")
    other.close()
    ledger.record(DecisionRow(id="d1", at=1.0, body=b"{}"))
    ledger.close()
    assert ledger.dropped == 1
    assert "decisions" in ledger.error


def test_the_memory_ledger_keeps_the_last() -> None:
    ledger = MemoryLedger(max_rows=2)
    for number in range(3):
        assert ledger.record(DecisionRow(id=str(number), at=0.0, body=b""))
    ledger.close()
    assert [row.id for row in ledger.rows if isinstance(row, DecisionRow)] == ["1", "2"]
