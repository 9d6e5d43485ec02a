import asyncio
import json
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from gateway.cli import main
from gateway.ledger import rejected_rows
from gateway.ledger.ledger import SqliteLedger
from gateway.ledger.rejected_rows import RejectedRows
from gateway.ledger.rows import DecisionRow, Row
from gateway.settings import Settings
from tests.gateway.ledger.test_ledger import REQUEST, rows
from tests.served import ask, serve, until


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


@pytest.mark.parametrize("wrong", [{"num_steps": 2**63}, {"prompt_tokens": 2**80}, {"device_s": float("nan")}, {"at": None}])
def test_invalid_row_is_set_aside_and_its_batch_is_written(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    for number in range(50):
        row = msgspec.structs.replace(REQUEST, request=f"r{number}", **(wrong if number == 20 else {}))
        assert ledger.record(row)
    ledger.close()
    assert rows(path, "SELECT count(*) FROM requests") == [(49,)]
    assert ledger.dropped == 1 and ledger.restarts == 0
    (line,) = ledger.rejected.path.read_text().splitlines()
    assert json.loads(line)["kind"] == "RequestRow"
    assert "r20" in line
    assert stat.S_IMODE(ledger.rejected.path.stat().st_mode) == 0o600


def test_file_of_rejected_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected_rows, "MAX_FILE_BYTES", 200_000)
    rejected = RejectedRows(tmp_path / "ledger.db")
    for number in range(100):
        rejected.add(DecisionRow(id=str(number), at=1.0, body=bytes(50_000)), "no room")
    assert 0 < rejected.path.stat().st_size <= 200_000


def test_writer_that_fails_goes_on_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    insert = ledger._store.insert
    failures = [RuntimeError("a bug"), MemoryError("no memory")]

    def failing(rows: Sequence[Row]) -> None:
        if failures:
            raise failures.pop(0)
        insert(rows)

    monkeypatch.setattr(ledger._store, "insert", failing)
    for number in (1, 2):
        ledger.record(msgspec.structs.replace(REQUEST, request=f"lost{number}"))
        wait(lambda number=number: ledger.restarts == number)  # type: ignore[misc]
        assert "restarts" in ledger.problem
    ledger.record(msgspec.structs.replace(REQUEST, request="kept"))
    wait(lambda: not ledger.problem)
    ledger.close()
    assert ledger.dropped == 2
    assert rows(tmp_path / "ledger.db", "SELECT request FROM requests") == [("kept",)]


async def test_failed_writer_makes_the_gateway_unready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    async with serve(tmp_path, ledger=ledger) as one:
        monkeypatch.setattr(ledger, "_problem", "failed and restarts")
        monkeypatch.setattr(ledger, "_clear_at", time.monotonic() + 1e6)
        async with one.http.get(f"{one.url}/readyz") as answer:
            assert answer.status == 503 and (await answer.json())["missing"] == {"ledger": "failed and restarts"}
        async with one.http.get(f"{one.url}/metrics") as answer:
            assert 'headway_background_up{task="ledger"} 0.0' in await answer.text()
        monkeypatch.setattr(ledger, "_clear_at", 0.0)
        async with one.http.get(f"{one.url}/readyz") as answer:
            assert answer.status == 200


async def test_check_finds_a_row_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    async with serve(tmp_path, ledger=ledger, settings=Settings()) as one:
        for _ in range(3):
            assert (await one.chat(ask()))[0] == 200
        assert (await one.chat({"model": "none"}))[0] == 400
        await until(lambda: rows(path, "SELECT count(*) FROM requests") == [(4,)])
        check = ["ledger", "check", "--url", one.url, "--ledger", str(path)]
        assert await asyncio.to_thread(main, check, {}) == 0, capsys.readouterr()
        other = sqlite3.connect(path)
        other.execute("DELETE FROM requests WHERE rowid = 1")
        other.commit()
        other.close()
        assert await asyncio.to_thread(main, check, {}) == 1
        assert "differs" in capsys.readouterr().out
