"""Processes of local workers: started, watched, restarted with a capped backoff, and ended with the gateway.

The gateway holds the write end of each worker's stdin and never writes. It closes however the gateway ends, and the worker
exits.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from gateway.policy.schema import Worker
from gateway.runtime.background import Background
from gateway.runtime.backoff import Backoff

STOP_S = 5.0
KEPT_LINES = 20

log = logging.getLogger("headway.supervisor")

Command = Callable[[str, Worker, Path, Path, int], Sequence[str]]
"""Function of (worker name, its policy with `draft` as a directory, model directory, socket, threads) to an argument list."""


def worker_command(name: str, worker: Worker, model: Path, socket: Path, threads: int) -> list[str]:
    command = [sys.executable, "-m", "backends", "--model", str(model), "--name", name, "--listen", f"unix://{socket}"]
    command += ["--device", worker.device if worker.device.startswith("cuda") else "cpu", "--threads", str(threads)]
    command += ["--dtype", worker.dtype, "--linear", worker.linear, "--max-sequences", str(worker.max_sequences)]
    for field in ("kv_tokens", "host_kv_tokens", "kv_dtype", "speculate", "draft", "prefill_tokens"):
        if (value := getattr(worker, field)) is not None:
            command += [f"--{field.replace('_', '-')}", str(value)]
    return [*command, "--exit-with-parent"]


def _drafted(worker: Worker, model_paths: Mapping[str, Path]) -> Worker:
    """Return the worker with its `draft` model replaced by that model's directory."""
    return structs.replace(worker, draft=str(model_paths[worker.draft])) if worker.draft else worker


def assign_threads(workers: Mapping[str, Worker], cores: int) -> dict[str, int]:
    """Return threads by worker. Numbers in the policy are kept; the other workers share the remaining cores, at least one
    each."""
    fixed = {name: worker.threads for name, worker in workers.items() if worker.threads is not None}
    free = [name for name in workers if name not in fixed]
    left = max(cores - sum(fixed.values()), len(free))
    share, extra = divmod(left, len(free)) if free else (0, 0)
    return fixed | {name: share + (place < extra) for place, name in enumerate(free)}


class LocalWorker:
    """One worker process, restarted whenever it ends. `problem` is public; `last_lines` of its stderr are for the log only."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        progress: Callable[[str], None],
        background: Background | None = None,
    ) -> None:
        self.name = name
        self._background = background or Background()
        self.restarts = 0
        self.problem = ""
        self.ready = False
        self.process: Process | None = None
        self._command = command
        self._env = env
        self._progress = progress
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._background.start(f"supervisor {self.name}", self._keep_alive)

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_alive(self) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            code = await self._run_once()
            backoff.ran(time.monotonic() - began)
            pause_s = backoff.take()
            self.restarts += 1
            self.problem = f"exited with {code}"
            lines = "".join(f"\n  {line}" for line in self.last_lines)
            log.error("worker %s %s, restarting in %.2g s; last lines of stderr:%s", self.name, self.problem, pause_s, lines)
            await asyncio.sleep(pause_s)

    async def _run_once(self) -> int:
        self.last_lines.clear()
        try:
            # In its own session: Ctrl-C reaches only the gateway, which then stops its workers in order.
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=dict(self._env), start_new_session=True
            )
        except OSError as error:
            self.last_lines.append(str(error))
            return -1
        self.process = process
        assert process.stdout and process.stderr
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_stdout(process.stdout))
                group.create_task(self._watch_stderr(process.stderr))
            return await process.wait()
        finally:
            self.ready = False
            await _end(process)

    async def _watch_stdout(self, lines: asyncio.StreamReader) -> None:
        async for line in _lines(lines):
            if line.startswith(b'{"ready"'):
                self.ready = True

    async def _watch_stderr(self, lines: asyncio.StreamReader) -> None:
        async for line in _lines(lines):
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text[:500])
            self._progress(f"{self.name}: {text}")


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines until the end. A line longer than the reader's limit is left out."""
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    assert process.stdin
    process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def worker_environment(env: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return `env` with idle OpenMP threads set to sleep: spinning ones take the cores of the other workers."""
    return {**env, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


class Supervisor:
    """All local workers of a policy. Their sockets are in `folder`, which must be private (0700)."""

    def __init__(
        self,
        workers: Mapping[str, Worker],
        model_paths: Mapping[str, Path],
        folder: Path,
        *,
        env: Mapping[str, str],
        command: Command = worker_command,
        cores: int | None = None,
        progress: Callable[[str], None] | None = None,
        background: Background | None = None,
    ) -> None:
        local = {name: worker for name, worker in workers.items() if worker.url is None}
        threads = assign_threads(local, cores or len(os.sched_getaffinity(0)))
        self.sockets = {name: folder / f"{place}.sock" for place, name in enumerate(local)}
        self.workers = {
            name: LocalWorker(
                name,
                command(name, _drafted(worker, model_paths), model_paths[worker.model], self.sockets[name], threads[name]),
                env=worker_environment(env, threads[name]),
                progress=progress or _to_stderr,
                background=background,
            )
            for name, worker in local.items()
        }

    def start(self) -> None:
        for worker in self.workers.values():
            worker.start()

    def kill(self, name: str) -> None:
        """Kill a hanging worker process, which is then restarted. Does nothing for a remote worker."""
        worker = self.workers.get(name)
        if worker and worker.process and worker.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers.values()))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
