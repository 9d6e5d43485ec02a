"""Reports of the ledger: by key, over time, and for one tenant alone."""

import csv
import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from gateway.cli import main
from gateway.ledger import history, spending
from gateway.ledger import slo_report as promises
from gateway.ledger.focus import COLUMNS, write_focus
from gateway.ledger.ledger import MemoryLedger, SqliteLedger
from gateway.ledger.rows import DecisionRow, DeviceRow, RequestRow
from gateway.ledger.scope import MAX_POINTS, Scope
from gateway.metering.device_time import DeviceTimes
from tests.fake_worker import FakeWorker
from tests.gateway.ledger.test_ledger import REQUEST

DAY_S = 86_400.0
ALL = Scope(None, 0.0, 10 * DAY_S)


def request(at: float, **changes: object) -> RequestRow:
    return msgspec.structs.replace(REQUEST, at=at, slo="interactive", **changes)


Ledgers = Callable[..., MemoryLedger]


@pytest.fixture
def ledger() -> Iterator[Ledgers]:
    """Makes a ledger of rows, and closes it."""
    with ExitStack() as stack:

        def of(*rows: RequestRow | DeviceRow | DecisionRow) -> MemoryLedger:
            kept = stack.enter_context(closing(MemoryLedger()))
            for row in rows:
                kept.record(row)
            return kept

        yield of


def idle_row(worker: str, idle_s: float) -> DeviceRow:
    return DeviceRow(
        at=5.0,
        worker=worker,
        model="m",
        busy_s=1.0,
        idle_s=idle_s,
        charged_usd=1e-6,
        unattributed_usd=0.0,
        idle_usd=idle_s / 1e6,
    )


@pytest.mark.parametrize("by", spending.BYS)
def test_the_lines_of_every_key_sum_to_the_same(ledger: Ledgers, by: spending.By) -> None:
    rows = [request(at=n * DAY_S / 2, run=f"r{n % 3}", tenant=f"t{n % 2}", model=f"m{n % 4}", usd=1e-6 * n) for n in range(12)]
    lines = spending.spending(ledger(*rows).read, ALL, by)
    assert sum(line.usd for line in lines) == pytest.approx(66e-6)
    assert sum(line.requests for line in lines) == 12
    assert len(lines) == {"tenant": 2, "model": 4, "run": 6, "day": 6}[by]
    keys = [line.key for line in lines]
    assert keys == sorted(keys) if by == "day" else [line.usd for line in lines] == sorted((x.usd for x in lines), reverse=True)


def test_a_scope_shows_one_tenant_in_one_time(ledger: Ledgers) -> None:
    kept = ledger(request(at=1.0), request(at=5.0, tenant="other"), request(at=9.0), DecisionRow(id="d1", at=1.0, body=b"{}"))
    (line,) = spending.spending(kept.read, Scope("t", 0.0, 8.0), "tenant")
    assert (line.key, line.requests) == ("t", 1)
    assert [run.tenant for run in history.runs(kept.read, Scope("other", 0.0, 10.0))] == ["other"]
    assert history.decision(kept.read, "t", "d1") == b"{}"
    assert history.decision(kept.read, "nobody", "d1") is None
    assert len(history.turns(kept.read, "t", "r")) == 2


def test_charged_and_idle_lie_on_one_time_line(ledger: Ledgers) -> None:
    kept = ledger(request(at=3.0), request(at=14.0), idle_row("w", 2.0))
    points = spending.spending_over_time(kept.read, Scope(None, 0.0, 60.0), with_idle=True)
    assert [(point.at, point.usd) for point in points] == [(0, 1e-6), (10, 1e-6)]
    assert points[0].idle_usd == pytest.approx(2e-6)


def test_a_series_has_few_points_however_long_the_time() -> None:
    for hours in (0.1, 1, 24, 168, 720, 24 * 365):
        scope = Scope(None, 0.0, 3600.0 * hours)
        assert 3600 * hours / scope.step_s <= MAX_POINTS


def test_percentiles_cover_answered_requests_and_burn_counts_misses(ledger: Ledgers) -> None:
    rows = [request(at=n / 10, ttft_s=n / 100, slo_met=n <= 98) for n in range(1, 101)]
    rows.append(request(at=1.0, outcome="rejected", http_status=429, status="overloaded", slo_met=False, ttft_s=99.0))
    rows.append(
        request(at=1.0, outcome="rejected", http_status=400, status="invalid_request", slo_counted=False, slo_met=False)
    )
    kept = ledger(*rows)
    (line,) = promises.attainment(kept.read, ALL)
    assert (line.p50_ttft_s, line.p95_ttft_s, line.p99_ttft_s) == (0.50, 0.95, 0.99)
    assert (line.counted, line.met) == (101, 98)
    assert line.burn == pytest.approx(3 / 101 / 0.01)
    assert {one.status for one in promises.rejections(kept.read, ALL)} == {"overloaded", "invalid_request"}
    series = promises.attainment_over_time(kept.read, Scope(None, 0.0, 60.0))
    assert [moment.at for moment in series] == [0, 10] and sum(moment.counted for moment in series) == 101


def test_worker_time_is_counted_once_across_a_restart() -> None:
    times = DeviceTimes({"w": 2.0}, {"w": "m"})
    worker = FakeWorker({}, step_device_s=0.0)
    told = []
    for busy, idle, attributed in ((10.0, 5.0, 10.0), (12.0, 6.0, 11.5), (1.0, 2.0, 1.0), (1.5, 2.0, 1.5)):
        worker.busy_s, worker.idle_s, worker.attributed_s = busy, idle, attributed
        times.observe("w", worker._load())
        told += times.rows(at=1.0)
    assert [(row.busy_s, row.idle_s) for row in told] == [(2.0, 1.0), (1.0, 2.0), (0.5, 0.0)]
    for row in told:
        whole = row.charged_usd + row.unattributed_usd + row.idle_usd
        assert whole == pytest.approx(2.0 * (row.busy_s + row.idle_s))


def test_focus_lines_sum_to_the_price_of_the_time(ledger: Ledgers) -> None:
    kept = ledger(request(at=3.0, usd=1e-6), idle_row("w", 2.0))
    out = io.StringIO()
    write_focus(out, spending.spending(kept.read, ALL, "model"), spending.idle(kept.read, ALL), ALL, "model")
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert tuple(rows[0]) == COLUMNS
    assert sum(float(row["BilledCost"]) for row in rows) == pytest.approx(3e-6)
    assert {row["ChargeCategory"] for row in rows} == {"Usage"}
    assert rows[0]["ResourceName"] == "m" and rows[0]["ChargePeriodStart"] == "1970-01-01T00:00:03Z"


def test_the_command_reads_a_ledger_that_is_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ledger.sqlite"
    writer = SqliteLedger(file)
    writer.record(REQUEST)
    writer.close()
    writer = SqliteLedger(file)
    try:
        for by in spending.BYS:
            assert main(["cost", "--by", by, "--days", "36500"], {"HEADWAY_LEDGER": str(file)}) == 0
            assert "0.00000100" in capsys.readouterr().out
        assert main(["cost", "--csv", "--ledger", str(file), "--days", "36500"], {}) == 0
        assert capsys.readouterr().out.startswith("BillingPeriodStart,")
    finally:
        writer.close()


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost"], {}) == 1
    assert "--ledger" in capsys.readouterr().err
    assert main(["cost", "--ledger", str(tmp_path / "none.sqlite")], {}) == 1
    sqlite3.connect(tmp_path / "other.sqlite").close()
    assert main(["cost", "--ledger", str(tmp_path / "other.sqlite")], {}) == 1
    assert "cannot be read" in capsys.readouterr().err
