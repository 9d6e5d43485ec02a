"""Private directory for the sockets of local workers, and removal of directories whose gateway was killed.

Each owner holds a file lock inside its directory. The system releases the lock when the process ends, however it ends.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "headway-sockets-"


class SocketDirectory:
    def __init__(self, parent: Path | None = None) -> None:
        """Create a directory that only this user can enter, as opening a worker's socket is enough to use it."""
        parent = parent or Path(tempfile.gettempdir())
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # The file gets its final name once it is locked: the next gateway removes directories with an unlocked `lock`.
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
        except OSError:  # its gateway is running
            pass
        finally:
            os.close(lock)
