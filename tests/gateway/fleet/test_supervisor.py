import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gateway.fleet.supervisor import LocalWorker, Supervisor, assign_threads, worker_command
from gateway.policy.schema import Worker
from tests.builders import PICO
from tests.served import until

SLEEPS = "import sys; print('{\"ready\": 1}', flush=True); sys.stdin.read()"


def worker(**options: int | str) -> Worker:
    return Worker(model="pico", device="cpu", **options)  # type: ignore[arg-type]


def local(script: str, lines: list[str] | None = None) -> LocalWorker:
    progress = lines.append if lines is not None else lambda line: None
    return LocalWorker("w", [sys.executable, "-c", script], env=os.environ, progress=progress)


def test_threads_sum_to_the_cores_at_most_and_each_worker_has_one() -> None:
    two = {"a": worker(), "b": worker()}
    assert assign_threads(two, 2) == {"a": 1, "b": 1}
    assert assign_threads(two, 5) == {"a": 3, "b": 2}
    assert assign_threads(two | {"c": worker(threads=4)}, 6) == {"a": 1, "b": 1, "c": 4}
    assert assign_threads(two, 1) == {"a": 1, "b": 1}


def test_worker_command_carries_the_policy_options() -> None:
    command = worker_command("w", worker(kv_tokens=4096), Path("/models/x"), Path("/run/w.sock"), 3)
    said = " ".join(command)
    for part in ("--model /models/x", "--listen unix:///run/w.sock", "--threads 3", "--kv-tokens 4096", "--exit-with-parent"):
        assert part in said
    assert "--host-kv-tokens" not in said and "--draft" not in said
    options = worker(
        host_kv_tokens=9, kv_dtype="int8", speculate="lookup", draft="/models/y", prefill_tokens=256, linear="int4"
    )
    said = " ".join(worker_command("w", options, Path("/models/x"), Path("/run/w.sock"), 3))
    for part in ("--host-kv-tokens 9", "--kv-dtype int8", "--speculate lookup", "--draft /models/y", "--prefill-tokens 256"):
        assert part in said
    assert "--linear int4" in said


async def test_a_worker_that_dies_is_started_again_and_its_last_lines_are_kept() -> None:
    lines: list[str] = []
    dying = local("import sys; print('no memory left', file=sys.stderr); sys.exit(3)", lines)
    dying.start()
    await until(lambda: dying.restarts >= 2)
    assert dying.problem == "exited with 3"
    assert "w: no memory left" in lines
    await dying.stop()


async def test_stopping_ends_the_process() -> None:
    running = local(SLEEPS)
    running.start()
    await until(lambda: running.ready)
    assert running.process is not None
    await running.stop()
    assert running.process.returncode is not None


async def test_a_killed_worker_comes_back_as_another_process() -> None:
    running = local(SLEEPS)
    running.start()
    await until(lambda: running.ready)
    assert running.process is not None
    first = running.process.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: running.restarts == 1 and running.ready)
    assert running.process.pid != first
    await running.stop()


def test_sockets_are_in_the_folder_that_is_given() -> None:
    supervisor = Supervisor({"a": worker()}, {"pico": PICO}, Path("/private"), env={}, cores=2)
    assert supervisor.sockets["a"].parent == Path("/private")


PARENT = """
import asyncio, sys
from gateway.fleet.supervisor import LocalWorker
async def main():
    command = [sys.executable, "-m", "tests.fake_worker", "--exit-with-parent"]
    command += ["--listen", sys.argv[1], "--model-dir", sys.argv[2]]
    worker = LocalWorker("w", command, env={}, progress=lambda line: None)
    worker.start()
    while not worker.ready:
        await asyncio.sleep(0.01)
    print(worker.process.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def test_a_worker_ends_when_its_gateway_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, f"unix://{tmp_path}/w.sock", str(PICO)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(1000):
        if not _runs(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"worker {pid} outlived its gateway")


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_endless_line_of_a_worker_does_not_end_its_supervision() -> None:
    worker = local("print('x' * 200_000, flush=True); print('{\"ready\": true}', flush=True); import time; time.sleep(60)")
    worker.start()
    await until(lambda: worker.ready)
    await worker.stop()
