"""Record of every request, decision and run. Writing never blocks the caller: rows go through a bounded buffer to one thread,
which is woken once a batch. Rows that do not fit are dropped and counted."""

import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.ledger.rejected_rows import RejectedRows
from gateway.ledger.rows import HoldRow, ResponseRow, Row, Rows
from gateway.ledger.store import BUSY_S, IN_MEMORY, Store, Values, is_locked, is_of_file, select
from gateway.runtime.backoff import FIRST_PAUSE_S, Backoff

MAX_BUFFERED_ROWS = 50_000
_BATCH_ROWS = 1_000
_BATCH_WAIT_S = 0.2
_FORGET_EVERY_S = 600.0
_DAY_S = 86_400.0
MAX_CLOSE_S = 10.0
"""Seconds in which rows behind another connection's lock are still tried when the ledger closes. Then they are set aside."""
MAX_REPORT_S = 10.0
"""Seconds of one query of a report. A year of a million requests takes about that long."""
_STEPS_A_CHECK = 10_000
"""Instructions of SQLite's machine between two looks at the clock: about a tenth of a millisecond."""

log = logging.getLogger("headway.ledger")


class Ledger(Protocol):
    """Interface of a ledger. Another database must also translate SQLite's dialect in the queries: `?`, `rowid`,
    `group_concat`, `strftime`, and truncating casts to INTEGER."""

    def record(self, row: Row | Rows) -> bool:
        """Queue a row. Return False when the buffer is full and the row was dropped. Never blocks."""

    def read(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        """Return rows by column name, of the rows written so far. Blocks briefly: for lookups by a key, in a thread."""

    def report(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        """Return rows as `read` does, for queries that may take long. Raises ReportTooLong. They delay no lookup."""

    def close(self) -> None:
        """Write all recorded rows, then close."""


class ReportTooLong(Exception):
    """A report took longer than it may."""


class Reader:
    """A read-only connection, used by one thread at a time. A query is ended after `max_s` seconds."""

    def __init__(self, path: Path, *, max_s: float | None = None) -> None:
        self._connection = open_reader(path)
        self._lock = threading.Lock()
        self._max_s, self._until = max_s, math.inf
        if max_s is not None:
            self._connection.set_progress_handler(lambda: time.monotonic() > self._until, _STEPS_A_CHECK)

    def read(self, query: str, values: Values) -> list[dict[str, Any]]:
        """Return rows by column name. Raises ReportTooLong or sqlite3.Error."""
        with self._lock:
            self._until = math.inf if self._max_s is None else time.monotonic() + self._max_s
            try:
                return select(self._connection, query, values)
            except sqlite3.OperationalError as error:
                if time.monotonic() > self._until:
                    raise ReportTooLong(f"the report took over {self._max_s:g} s: ask for fewer hours") from error
                raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()


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

    report = read

    def _filled(self) -> Store:
        recorded, rows = self._num_recorded, tuple(self.rows)
        new = rows[max(0, len(rows) - (recorded - self._num_stored)) :]
        if self._store is None or self._num_held + len(new) > 2 * self._max_rows:
            self.close()
            self._store, new, self._num_held = Store(IN_MEMORY), rows, 0
        self._store.insert(new)
        self._num_stored, self._num_held = recorded, self._num_held + len(new)
        return self._store

    def close(self) -> None:
        if self._store:
            self._store.close()
            self._store = None


class SqliteLedger:
    """Ledger in one SQLite file in WAL mode, so that others can read while we write. Rows older than `keep_days` are deleted.

    `dropped` counts rows that did not fit or could not be written; `error` is the last write error. Rows behind the lock of
    another connection are tried again. Rows that could not be written are set aside in `rejected`. `restarts` counts failures
    of the writing thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_buffered_rows: int = MAX_BUFFERED_ROWS,
        keep_days: float | None = None,
        max_report_s: float = MAX_REPORT_S,
        busy_s: float = BUSY_S,
    ) -> None:
        """Open or create the file. Raises sqlite3.Error or OSError, also for a file of a later version."""
        self.dropped = self.restarts = 0
        self.error = ""
        self.rejected = RejectedRows(path)
        self._problem, self._clear_at = "", 0.0
        self._batch: Sequence[Row | Rows] = ()
        self._keep_s = None if keep_days is None else keep_days * _DAY_S
        self._forget_at = 0.0
        self._rows: deque[Row | Rows] = deque()
        self._max_rows = max_buffered_rows
        self._some, self._closing = threading.Event(), threading.Event()
        self._store = Store(str(path), busy_s=busy_s)
        self._lookups, self._keys = Reader(path), Reader(path)
        self._reports = Reader(path, max_s=max_report_s)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
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
        return self._lookups.read(query, values)

    def read_keys(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        """Read the key store through a connection of its own, which nothing else can hold."""
        return self._keys.read(query, values)

    def report(self, query: str, values: Values = ()) -> list[dict[str, Any]]:
        return self._reports.read(query, values)

    def close(self) -> None:
        self._closing.set()
        self._some.set()
        self._thread.join()
        for reader in (self._lookups, self._keys, self._reports):
            reader.close()
        self._store.close()

    @property
    def problem(self) -> str:
        """Why rows may not be written; empty when the thread runs. It clears some time after a restart without a failure."""
        if not self._thread.is_alive() and not self._closing.is_set():
            return "the ledger's thread has ended"
        return self._problem if time.monotonic() < self._clear_at else ""

    def _run(self) -> None:
        """Write until closed. Any failure is counted and reported, and writing goes on after a growing pause."""
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                return self._write()
            except Exception as error:  # one of the places that catch everything: the work must go on
                backoff.ran(time.monotonic() - began)
                pause_s = backoff.take()
                log.error("the ledger's thread failed, it restarts in %g s", pause_s, exc_info=error)
                self._set_aside(self._batch, error)
                self.restarts += 1
            self._problem = f"failed and restarts in {pause_s:g} s, see the gateway's log"
            self._clear_at = time.monotonic() + 2 * pause_s
            self._closing.wait(pause_s)

    def _write(self) -> None:
        """Write batches until closed. A batch collects the rows within _BATCH_WAIT_S of its first one."""
        closing = False
        while not closing or self._rows:
            self._some.wait(0 if closing else _FORGET_EVERY_S)
            closing = self._closing.wait(_BATCH_WAIT_S)
            self._some.clear()
            while self._rows:
                self._batch = [self._rows.popleft() for _ in range(min(len(self._rows), _BATCH_ROWS))]
                self._insert(self._batch)
                self._batch = []
            self._forget(time.time())

    def _insert(self, batch: Sequence[Row | Rows]) -> None:
        """Insert a batch. If a row is invalid, only it is set aside; if the file cannot be written, the whole batch is."""
        try:
            self._insert_unlocked([row for recorded in batch for row in _built(recorded)])
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            if len(batch) == 1 or is_of_file(error):
                self._set_aside(batch, error)
                return
            middle = len(batch) // 2
            self._insert(batch[:middle])
            self._insert(batch[middle:])

    def _insert_unlocked(self, rows: Sequence[Row]) -> None:
        """Insert rows. While another connection holds the lock they stay first and are tried again, with a growing pause; once
        the ledger closes, for at most MAX_CLOSE_S. Raises as `Store.insert` does.
        """
        backoff, tries_until = Backoff(), math.inf
        while True:
            try:
                return self._store.insert(rows)
            except sqlite3.OperationalError as error:
                if self._closing.is_set():
                    tries_until = min(tries_until, time.monotonic() + MAX_CLOSE_S)
                if not is_locked(error) or time.monotonic() >= tries_until:
                    raise
                pause_s = backoff.pause_s
                log.warning("another connection holds the ledger's lock: %d rows are tried again in %g s", len(rows), pause_s)
                self.error = str(error)
            if self._closing.is_set():
                time.sleep(FIRST_PAUSE_S)
            else:
                self._closing.wait(backoff.take())

    def _set_aside(self, batch: Sequence[Row | Rows], error: Exception) -> None:
        """Count rows that are lost, and keep them in the file of rejected rows."""
        if not batch:
            return
        self.dropped += len(batch)
        self.error = str(error)
        log.error("%d rows cannot be written into the ledger and go to %s: %s", len(batch), self.rejected.path, error)
        for recorded in batch:
            try:
                rows: Sequence[Any] = _built(recorded)
            except (ValueError, TypeError, OverflowError):
                rows = (recorded,)
            for row in rows:
                self.rejected.add(row, str(error))

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
