"""Files that only their owner may read: created so, and made so if they exist."""

import logging
import os
import stat
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
UMASK = 0o077

log = logging.getLogger("headway.files")


def make_private(path: Path, *, beside: tuple[str, ...] = ()) -> None:
    """Create a file with mode 0600 and its missing folders with 0700. An existing file gets that mode; `beside` are endings of
    further files. A folder that others may write to is named in the log. Raises OSError."""
    _make_folder(path.absolute().parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
    changed = [name for ending in ("", *beside) if _restrict(name := path.with_name(path.name + ending))]
    if changed:
        names = ", ".join(file.name for file in changed)
        log.warning("%s could be read by other users of this machine: its mode is 0600 now", names)
    mode = path.absolute().parent.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        log.warning("%s may be written to by other users of this machine: set its mode to 0700", path.absolute().parent)


def _make_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=FOLDER_MODE, exist_ok=True)


def _restrict(path: Path) -> bool:
    """Take the rights of group and others from a file. Return whether it had any."""
    try:
        if not stat.S_IMODE(path.stat().st_mode) & 0o077:
            return False
        path.chmod(FILE_MODE)
    except (FileNotFoundError, PermissionError):
        return False
    return True
