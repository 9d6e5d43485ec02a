"""The file of rows that the ledger could not write, beside the ledger. Bounded, for an operator to look at."""

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

MAX_FILE_BYTES = 16 * 1024 * 1024
"""Some ten thousand rows with their decisions. Later rows are only counted."""
MAX_LINE_BYTES = 64 * 1024


class RejectedRows:
    """Appends rows as JSON lines to a file of mode 0600."""

    def __init__(self, ledger: Path) -> None:
        self.path = ledger.with_name(ledger.name + ".rejected.jsonl")

    def add(self, row: Any, error: str) -> None:
        """Append a row with the error of its insert. Does nothing if the file is full or cannot be written."""
        with contextlib.suppress(OSError):
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                line = _line(row, error)
                if os.fstat(file).st_size + len(line) <= MAX_FILE_BYTES:
                    os.write(file, line)
            finally:
                os.close(file)


def _line(row: Any, error: str) -> bytes:
    kind = type(row).__name__
    try:
        line = msgspec.json.encode({"kind": kind, "error": error, "row": row})
    except (TypeError, ValueError, OverflowError):
        line = b""
    if not 0 < len(line) < MAX_LINE_BYTES:
        shown = repr(row)[: MAX_LINE_BYTES // 8].encode("utf-8", "replace").decode()
        line = msgspec.json.encode({"kind": kind, "error": error, "text": shown})
    return line + b"\n"
