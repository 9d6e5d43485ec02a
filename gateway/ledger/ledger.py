"""Record of every request, decision and run. Writing never blocks the caller: rows go through a bounded buffer to one thread,
which is woken once a batch. Rows that do not fit are dropped and counted."""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.ledger.rows import HoldRow, ResponseRow, Row, Rows
from gateway.ledger.store import Store, Values, select

MAX_BUFFERED_ROWS = 50_000
_BATCH_ROWS = 1_000
_BATCH_WAIT_S = 0.2
_FORGET_EVERY_S = 600.0
_DAY_S = 86_400.0


class Ledger(Protocol):
    """Interface of a ledger. Another database must also translate SQLite's dialect in the queries: `?`, `rowid`,
    `group_concat`, `strftime`, and truncating casts to INTEGER."""

    def record(self, row: Row | Rows) -> bool:
        """Queue a row. Return False when the buffer is full and the row was dropped. Never blocks."""

    def read(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        """Return rows by column name, of the rows written so far. Blocks: call it in a thread."""

    def close(self) -> None:
        """Write all recorded rows, then close."""


class MemoryLedger:
    """Ledger of the last rows in memory, for tests and for a gateway without a ledger file. Tables are filled at a read. They
    are rebuilt when over half of their rows may have been dropped."""

    def __init__(self, max_rows: int = 10_000) -> None:
        self.rows: deque[Row] = deque(maxlen=max_rows)
        self._max_rows = max_rows
        self._num_recorded = self._num_stored = self._num_held = 0
        self._store: Store | None = None
        self._reading = threading.Lock()

    def record(self, row: Row | Rows) -> bool:
        for built in _built(row):
            if not isinstance(built, HoldRow | ResponseRow):  # both serve only a next process, which cannot read this one
                self.rows.append(built)
                self._num_recorded += 1
        return True

    def read(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        with self._reading:
            return select(self._filled().connection, query, values)

    def _filled(self) -> Store:
        recorded, rows = self._num_recorded, tuple(self.rows)
        new = rows[max(0, len(rows) - (recorded - self._num_stored)) :]
        if self._store is None or self._num_held + len(new) > 2 * self._max_rows:
            self.close()
            self._store, new, self._num_held = Store(":memory:"), rows, 0
        self._store.insert(new)
        self._num_stored, self._num_held = recorded, self._num_held + len(new)
        return self._store

    def close(self) -> None:
        if self._store:
            self._store.close()
            self._store = None


class SqliteLedger:
    """Ledger in one SQLite file in WAL mode, so that others can read while we write. Rows older than `keep_days` are deleted.

    `dropped` counts rows that did not fit or could not be written; `error` is the last write error.
    """

    def __init__(self, path: Path, *, max_buffered_rows: int = MAX_BUFFERED_ROWS, keep_days: float | None = None) -> None:
        """Open or create the file. Raises sqlite3.Error or OSError, also for a file of a later version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.dropped = 0
        self.error = ""
        self._keep_s = None if keep_days is None else keep_days * _DAY_S
        self._forget_at = 0.0
        self._rows: deque[Row | Rows] = deque()
        self._max_rows = max_buffered_rows
        self._some, self._closing = threading.Event(), threading.Event()
        self._store = Store(str(path))
        self._reader = open_reader(path)
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def record(self, row: Row | Rows) -> bool:
        if len(self._rows) >= self._max_rows:
            self.dropped += 1
            return False
        self._rows.append(row)
        if not self._some.is_set():
            self._some.set()
        return True

    def read(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        with self._reading:
            return select(self._reader, query, values)

    def close(self) -> None:
        self._closing.set()
        self._some.set()
        self._thread.join()
        with self._reading:
            self._reader.close()
        self._store.close()

    def _write(self) -> None:
        """Write batches until closed. A batch collects the rows within _BATCH_WAIT_S of its first one."""
        closing = False
        while not closing:
            self._some.wait(_FORGET_EVERY_S)
            closing = self._closing.wait(_BATCH_WAIT_S)
            self._some.clear()
            while self._rows:
                self._insert([self._rows.popleft() for _ in range(min(len(self._rows), _BATCH_ROWS))])
            self._forget(time.time())

    def _insert(self, batch: list[Row | Rows]) -> None:
        try:
            self._store.insert([row for recorded in batch for row in _built(recorded)])
        except (sqlite3.Error, ValueError, TypeError) as error:  # a bad value must not end this thread
            self.dropped += len(batch)
            self.error = str(error)

    def _forget(self, now: float) -> None:
        """Delete one slice of old rows; the next slice follows with the next batch."""
        if self._keep_s is None or now < self._forget_at:
            return
        try:
            more = self._store.forget(now - self._keep_s)
        except sqlite3.Error as error:
            self.error, more = str(error), 0
        self._forget_at = now if more else now + _FORGET_EVERY_S


def _built(row: Row | Rows) -> Sequence[Row]:
    return (row,) if isinstance(row, Row) else row.rows()


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection to a ledger that another process may write. Raises sqlite3.Error when there is none."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, isolation_level=None)
