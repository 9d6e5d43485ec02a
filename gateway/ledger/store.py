"""Tables of the ledger in one SQLite connection: migration, inserts, reads, and deletion of old rows."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from gateway.ledger.rows import (
    KINDS,
    DecisionRow,
    DeviceRow,
    HoldRow,
    KeyRow,
    KeyUseRow,
    OutcomeRow,
    PolicyRow,
    RequestRow,
    ResponseRow,
    Row,
    RunRow,
    table,
)
from gateway.runtime.private_files import make_private

IN_MEMORY = ":memory:"
Values = Sequence[str | int | float]

_V1 = """
CREATE TABLE requests (
    decision TEXT NOT NULL, at REAL NOT NULL, tenant TEXT NOT NULL, run TEXT NOT NULL, chain TEXT NOT NULL,
    asked TEXT NOT NULL, model TEXT NOT NULL, worker TEXT NOT NULL, route TEXT NOT NULL, reason TEXT NOT NULL,
    status TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    queue_s REAL NOT NULL, ttft_s REAL NOT NULL, total_s REAL NOT NULL, device_s REAL NOT NULL, usd REAL NOT NULL,
    saved_usd REAL NOT NULL, all_large_usd REAL NOT NULL, slo_met INTEGER NOT NULL);
CREATE TABLE decisions (id TEXT NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (id));
CREATE TABLE runs (
    run TEXT NOT NULL, tenant TEXT NOT NULL, source TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL,
    turns INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    device_s REAL NOT NULL, usd REAL NOT NULL, saved_usd REAL NOT NULL, all_large_usd REAL NOT NULL,
    PRIMARY KEY (tenant, run));
CREATE INDEX requests_by_run ON requests (tenant, run, at);
"""
_V2 = """
ALTER TABLE requests ADD COLUMN request TEXT NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN tier TEXT NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN outcome TEXT NOT NULL DEFAULT 'ok';
ALTER TABLE requests ADD COLUMN http_status INTEGER NOT NULL DEFAULT 200;
ALTER TABLE requests ADD COLUMN slo TEXT NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN slo_counted INTEGER NOT NULL DEFAULT 1;
ALTER TABLE requests ADD COLUMN prefill_s REAL NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN decode_s REAL NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN num_steps INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN mean_batch REAL NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN num_attempts INTEGER NOT NULL DEFAULT 1;
ALTER TABLE requests ADD COLUMN trace TEXT NOT NULL DEFAULT '';
CREATE TABLE device_time (
    at REAL NOT NULL, worker TEXT NOT NULL, model TEXT NOT NULL, busy_s REAL NOT NULL, idle_s REAL NOT NULL,
    charged_usd REAL NOT NULL, unattributed_usd REAL NOT NULL, idle_usd REAL NOT NULL);
CREATE TABLE policies (at REAL NOT NULL, digest TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX requests_by_time ON requests (at);
CREATE INDEX requests_by_decision ON requests (decision);
CREATE INDEX decisions_by_time ON decisions (at);
CREATE INDEX device_time_by_time ON device_time (at);
"""
_V3 = """
CREATE TABLE outcomes (
    at REAL NOT NULL, tenant TEXT NOT NULL, run TEXT NOT NULL, request TEXT NOT NULL, decision TEXT NOT NULL,
    model TEXT NOT NULL, tier TEXT NOT NULL, score REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX outcomes_by_time ON outcomes (at);
CREATE INDEX requests_by_request ON requests (request);
"""
_V4 = """
ALTER TABLE requests ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
"""
_V5 = """
CREATE TABLE api_keys (
    id TEXT NOT NULL, tenant TEXT NOT NULL, prefix TEXT NOT NULL, digest BLOB NOT NULL, created_at REAL NOT NULL,
    requests_per_minute INTEGER NOT NULL, tokens_per_minute INTEGER NOT NULL, concurrent_requests INTEGER NOT NULL,
    changed INTEGER NOT NULL, revoked_at REAL NOT NULL, PRIMARY KEY (id), UNIQUE (digest));
CREATE TABLE key_uses (id TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (id));
CREATE INDEX api_keys_by_change ON api_keys (changed);
"""
_V6 = """
CREATE TABLE holds (
    request TEXT NOT NULL, at REAL NOT NULL, route TEXT NOT NULL, tenant TEXT NOT NULL, key_id TEXT NOT NULL,
    run TEXT NOT NULL, usd REAL NOT NULL, tokens INTEGER NOT NULL, turns INTEGER NOT NULL, PRIMARY KEY (request));
"""
_V7 = """
CREATE TABLE responses (
    tenant TEXT NOT NULL, id TEXT NOT NULL, at REAL NOT NULL, size INTEGER NOT NULL, messages BLOB NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (tenant, id));
CREATE INDEX responses_by_time ON responses (at, tenant, size);
"""
_V8 = """
ALTER TABLE requests ADD COLUMN cut TEXT NOT NULL DEFAULT '';
"""
_V9 = """
ALTER TABLE requests ADD COLUMN asked_digest TEXT NOT NULL DEFAULT '';
DELETE FROM outcomes WHERE rowid NOT IN (SELECT max(rowid) FROM outcomes GROUP BY tenant, decision);
CREATE UNIQUE INDEX outcomes_by_answer ON outcomes (tenant, decision);
"""
MIGRATIONS = (_V1, _V2, _V3, _V4, _V5, _V6, _V7, _V8, _V9)
"""Scripts from each version to the next. A file's `user_version` is the number of scripts applied to it."""

_AGES: dict[type[Row], str] = {
    HoldRow: "at", RequestRow: "at", DecisionRow: "at", RunRow: "last_seen", DeviceRow: "at", PolicyRow: "at",
    OutcomeRow: "at", KeyRow: "revoked_at", KeyUseRow: "at", ResponseRow: "at",
}  # fmt: skip
_MAY_GO: dict[type[Row], str] = {
    # The policy in force stays, however old.
    PolicyRow: "at < (SELECT max(at) FROM policies)",
    # So do keys in force, and always the last changed row: a store that ever had keys requires one.
    KeyRow: "revoked_at > 0 AND changed < (SELECT max(changed) FROM api_keys)",
    KeyUseRow: "id NOT IN (SELECT id FROM api_keys)",
}
MAX_RESPONSES, MAX_RESPONSE_BYTES = 10_000, 256 * 1024 * 1024
"""Bounds on the stored responses of each tenant. The oldest are deleted first."""
MAX_LABELS, MAX_LABEL_BYTES = 100_000, 64 * 1024 * 1024
"""Bounds on the labels of each tenant. The oldest are deleted first."""
_TRIM_AFTER_BYTES = MAX_LABEL_BYTES // 64
"""Bytes of new labels of a tenant after which its labels are counted: counting reads all of them."""
_LABEL_OVERHEAD_BYTES = 512
_TRIM_LABELS = f"""
DELETE FROM outcomes WHERE rowid IN (
    SELECT id FROM (
        SELECT rowid AS id, row_number() OVER newest AS number,
        sum(length(body) + {_LABEL_OVERHEAD_BYTES}) OVER newest AS bytes FROM outcomes
        WHERE tenant = ? WINDOW newest AS (ORDER BY at DESC, rowid DESC))
    WHERE number > {MAX_LABELS} OR bytes > {MAX_LABEL_BYTES})
"""
_TRIM = """
DELETE FROM responses WHERE rowid IN (
    SELECT id FROM (
        SELECT rowid AS id, row_number() OVER newest AS number, sum(size) OVER newest AS bytes FROM responses
        WHERE tenant = ? WINDOW newest AS (ORDER BY at DESC, rowid DESC))
    WHERE number > ? OR bytes > ?)
"""
_FILE_ERRORS = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB,
}  # fmt: skip
"""Primary result codes of SQLite, in the low byte of an error's code."""
BUSY_S = 5.0
"""Seconds in which SQLite waits for the lock of another connection: its own default."""
ROWS_A_STATEMENT = 16
"""Rows of one INSERT. Each statement releases the GIL and takes it again, which delays the other threads (docs/log.md)."""
_FORGET_ROWS = 5_000
"""Rows of one DELETE: it takes milliseconds. New rows are written between two deletes."""


class Store:
    """One connection to a ledger. Its owner closes it; one thread at a time may use it."""

    def __init__(self, path: str, *, busy_s: float = BUSY_S) -> None:
        """Open and migrate a file, which only this user may read. Raises OSError, or sqlite3.Error if it is no ledger or is of
        a later version."""
        if path != IN_MEMORY:
            make_private(Path(path), beside=("-wal", "-shm"))
        self.connection = sqlite3.connect(path, timeout=busy_s, check_same_thread=False, isolation_level=None)
        self._new_label_bytes = Counter[str]()
        try:
            _migrate(self.connection)
        except sqlite3.Error:
            self.connection.close()
            raise

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert all rows or none. A request's row deletes its budget reservation. Raises sqlite3.Error."""
        ended = {row.request for row in rows if isinstance(row, RequestRow) and row.request}
        rows = [row for row in rows if not isinstance(row, HoldRow) or row.request not in ended]
        try:
            self.connection.execute("BEGIN")
            for kind in KINDS:
                values = [msgspec.structs.astuple(row) for row in rows if isinstance(row, kind)]
                many = len(values) - len(values) % ROWS_A_STATEMENT
                for at in range(0, many, ROWS_A_STATEMENT):
                    self.connection.execute(_INSERT_MANY[kind], [*chain.from_iterable(values[at : at + ROWS_A_STATEMENT])])
                if many < len(values):
                    self.connection.executemany(_INSERT[kind], values[many:])
            if self.connection.execute("SELECT EXISTS (SELECT 1 FROM holds)").fetchone()[0]:  # usually there are no budgets
                self.connection.executemany("DELETE FROM holds WHERE request = ?", [(request,) for request in ended])
            self._bound_responses([row for row in rows if isinstance(row, ResponseRow)])
            self._bound_labels([row for row in rows if isinstance(row, OutcomeRow)])
            self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _bound_responses(self, rows: Sequence[ResponseRow]) -> None:
        gone = [(row.tenant, row.id) for row in rows if not row.body]
        self.connection.executemany("DELETE FROM responses WHERE tenant = ? AND id = ? AND body = x''", gone)
        for tenant in {row.tenant for row in rows}:
            self.connection.execute(_TRIM, (tenant, MAX_RESPONSES, MAX_RESPONSE_BYTES))

    def _bound_labels(self, rows: Sequence[OutcomeRow]) -> None:
        for row in rows:
            self._new_label_bytes[row.tenant] += len(row.body) + _LABEL_OVERHEAD_BYTES
        for tenant in {row.tenant for row in rows}:
            if self._new_label_bytes[tenant] >= _TRIM_AFTER_BYTES:
                self.connection.execute(_TRIM_LABELS, (tenant,))
                del self._new_label_bytes[tenant]

    def forget(self, before: float, kinds: Iterable[type[Row]] = KINDS) -> int:
        """Delete at most _FORGET_ROWS rows a table that are older than `before` (Unix time), and free their pages on disk.
        Return the number deleted."""
        deleted = 0
        for kind in kinds:
            name, age = table(kind), _AGES[kind]
            query = f"SELECT rowid FROM {name} WHERE {age} < ? AND {_MAY_GO.get(kind, '1')} LIMIT {_FORGET_ROWS}"
            deleted += self.connection.execute(f"DELETE FROM {name} WHERE rowid IN ({query})", (before,)).rowcount
        if deleted:
            self.connection.execute("PRAGMA incremental_vacuum")
        return deleted

    def close(self) -> None:
        self.connection.close()


def is_of_file(error: Exception) -> bool:
    """Return whether an error is of the file, so that no row can be written, and not of a row."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _FILE_ERRORS


def is_locked(error: Exception) -> bool:
    """Return whether another connection holds the file's lock, so that the same rows can be written later."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def select(connection: sqlite3.Connection, query: str, values: Values) -> list[dict[str, Any]]:
    """Run a query and return its rows by column name."""
    cursor = connection.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing scripts, each in one transaction: a crash leaves the file at a whole version."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"the ledger is of version {version}, this is {len(MIGRATIONS)}: move the file away")
    if version == 0:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    # NORMAL: a killed process loses no commit. A power cut loses at most the last commits and never corrupts the file.
    connection.execute("PRAGMA synchronous=NORMAL")
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT;")


def _row(kind: type[Row]) -> str:
    return f"({', '.join('?' * len(kind.__struct_fields__))})"


_INSERT = {
    kind: f"INSERT OR REPLACE INTO {table(kind)} ({', '.join(kind.__struct_fields__)}) VALUES {_row(kind)}" for kind in KINDS
}
_INSERT_MANY = {kind: ", ".join([insert, *[_row(kind)] * (ROWS_A_STATEMENT - 1)]) for kind, insert in _INSERT.items()}
