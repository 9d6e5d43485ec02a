"""Every request, decision and run, kept. Writing never blocks the caller: rows go through a bounded buffer to one thread,
and what does not fit is counted, not waited for."""

import queue
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import msgspec

MAX_BUFFERED_ROWS = 50_000
_BATCH_ROWS = 1_000
_BATCH_WAIT_S = 0.2
_SCHEMA_VERSION = 1


class RequestRow(msgspec.Struct, frozen=True, kw_only=True, tag="requests"):
    """One attempt at a request. `at` is Unix time; `status` a finish reason or an error code; `run` as the client knows it."""

    decision: str
    at: float
    tenant: str
    run: str
    chain: str
    asked: str
    model: str
    worker: str
    route: str
    reason: str
    status: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: float
    ttft_s: float
    total_s: float
    device_s: float
    usd: float
    saved_usd: float
    all_large_usd: float
    slo_met: bool


class DecisionRow(msgspec.Struct, frozen=True, kw_only=True, tag="decisions"):
    """`body` is the Decision as JSON."""

    id: str
    at: float
    body: bytes


class RunRow(msgspec.Struct, frozen=True, kw_only=True, tag="runs"):
    """The sums of a run so far; a later row of the same run replaces it."""

    run: str
    tenant: str
    source: str
    first_seen: float
    last_seen: float
    turns: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    device_s: float
    usd: float
    saved_usd: float
    all_large_usd: float


Row = RequestRow | DecisionRow | RunRow
_KINDS: tuple[type[Row], ...] = (RequestRow, DecisionRow, RunRow)
_KEYS: dict[type[Row], str] = {DecisionRow: "PRIMARY KEY (id)", RunRow: "PRIMARY KEY (tenant, run)"}
_COLUMN = {str: "TEXT", float: "REAL", int: "INTEGER", bool: "INTEGER", bytes: "BLOB"}


class Ledger(Protocol):
    def record(self, row: Row) -> bool:
        """False when the buffer is full and the row was dropped. Never blocks."""

    def close(self) -> None:
        """Returns when everything recorded is kept."""


class MemoryLedger:
    """Keeps the last rows in memory; for tests, and for a gateway that is told to keep nothing."""

    def __init__(self, max_rows: int = 10_000) -> None:
        self.rows: deque[Row] = deque(maxlen=max_rows)

    def record(self, row: Row) -> bool:
        self.rows.append(row)
        return True

    def close(self) -> None:
        pass


class SqliteLedger:
    """One SQLite file in WAL mode, so that others can read while we write.

    `dropped` counts rows that did not fit or could not be written; `error` is the last reason of the latter.
    """

    def __init__(self, path: Path, *, max_buffered_rows: int = MAX_BUFFERED_ROWS) -> None:
        """Raises sqlite3.Error or OSError when the file cannot be made or is of another version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.dropped = 0
        self.error = ""
        self._rows: queue.Queue[Row | None] = queue.Queue(max_buffered_rows)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            _prepare(self._connection)
        except sqlite3.Error:
            self._connection.close()
            raise
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def record(self, row: Row) -> bool:
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join()
        self._connection.close()

    def _write(self) -> None:
        going_on = True
        while going_on:
            batch = [self._rows.get()]
            until = time.monotonic() + _BATCH_WAIT_S
            while len(batch) < _BATCH_ROWS and batch[-1] is not None:
                try:
                    batch.append(self._rows.get(timeout=max(0.0, until - time.monotonic())))
                except queue.Empty:
                    break
            going_on = batch[-1] is not None
            self._insert([row for row in batch if row is not None])

    def _insert(self, rows: list[Row]) -> None:
        try:
            self._connection.execute("BEGIN")
            for kind in _KINDS:
                values = [msgspec.structs.astuple(row) for row in rows if isinstance(row, kind)]
                if values:
                    self._connection.executemany(_INSERT[kind], values)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.dropped += len(rows)
            self.error = str(error)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _table(kind: type[Row]) -> str:
    return str(kind.__struct_config__.tag)


def _prepare(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"the ledger is of version {version}, this is {_SCHEMA_VERSION}: move the file away")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    for kind in _KINDS:
        columns = [f"{field.encode_name} {_COLUMN[field.type]} NOT NULL" for field in msgspec.structs.fields(kind)]
        columns += [_KEYS[kind]] if kind in _KEYS else []
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_table(kind)} ({', '.join(columns)})")
    connection.execute("CREATE INDEX IF NOT EXISTS requests_by_run ON requests (tenant, run, at)")
    connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")


_INSERT = {
    kind: f"INSERT OR REPLACE INTO {_table(kind)} VALUES ({', '.join('?' * len(kind.__struct_fields__))})" for kind in _KINDS
}
