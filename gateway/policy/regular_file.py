"""Reads a small regular file: never a device, a pipe, or one without an end."""

import os
import stat
from pathlib import Path


def read_regular(path: Path, max_bytes: int) -> str:
    """Return a file's text. Raises OSError, or ValueError for anything but a regular UTF-8 file of at most `max_bytes`."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("is no regular file")
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"is larger than {max_bytes:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("cannot be read: it is not UTF-8") from None
