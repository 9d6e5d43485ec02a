"""A gateway that was killed leaves nothing behind for longer than until the next one starts."""

import subprocess
import sys
from pathlib import Path

from gateway.fleet.socket_dir import SocketDirectory

HOLD = "import sys, time; from pathlib import Path; from gateway.fleet.socket_dir import SocketDirectory; "
HOLD += "f = SocketDirectory(Path(sys.argv[1])); print(f.path, flush=True); time.sleep(600)"


def test_folder_of_a_killed_gateway_is_removed_and_a_live_ones_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        held = Path(other.stdout.readline().strip())
        mine = SocketDirectory(tmp_path)
        (tmp_path / "headway-sockets-unlocked").mkdir()
        another = SocketDirectory(tmp_path)
        assert held.is_dir() and mine.path.is_dir() and mine.path.stat().st_mode & 0o777 == 0o700
        other.kill()
        other.wait()
    assert held.is_dir()
    third = SocketDirectory(tmp_path)
    assert not held.exists() and mine.path.is_dir() and another.path.is_dir()
    for folder in (mine, another, third):
        folder.close()
    assert [one.name for one in tmp_path.iterdir()] == ["headway-sockets-unlocked"]
