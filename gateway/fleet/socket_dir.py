"""A private folder for the sockets of local workers, and the removal of those whose gateway was killed.

Whoever owns a folder holds a lock on a file in it, which the system lets go of when the process ends, however it ends.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "headway-sockets-"


class SocketDirectory:
    def __init__(self, parent: Path | None = None) -> None:
        """Readable by this user alone: whoever can open a worker's socket can use it."""
        parent = parent or Path(tempfile.gettempdir())
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Under another name until it is locked: a folder with a lock that nobody holds is removed by the next gateway.
        fresh = self.path / "lock.new"
        self._lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fresh.rename(self.path / "lock")

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another user's, or not locked yet
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its gateway lives
            pass
        finally:
            os.close(lock)
