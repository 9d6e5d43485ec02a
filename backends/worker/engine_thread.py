"""The engine's thread. It sleeps while there is nothing to do; between steps it takes every command that has come."""

import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable

from backends.engine.engine import Engine
from backends.structured_output.grammar import Grammars
from backends.wire import Sampling, Submit
from backends.worker.link_handler import Command, Frame, LinkHandler, Outgoing

IDLE_REPORT_S = 1.0
"""An idle worker wakes this often to say how long it has been idle."""


class EngineThread:
    """`send` is called on the engine's thread with what goes out, `failed` once if a step raises: the engine is then gone.

    With `yields` the thread, which computes itself, keeps nobody waiting for the processor who has but a message to pass on."""

    def __init__(
        self,
        engine: Engine,
        *,
        send: Callable[[list[Outgoing]], None],
        failed: Callable[[BaseException], None],
        grammars: Grammars | None = None,
        yields: bool = False,
    ) -> None:
        self._yields = yields
        self._engine, self._link_handler = engine, LinkHandler(engine, grammars, self.post)
        self._send, self._failed = send, failed
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        self._commands.put(command)
        match command:
            case Frame(_, Submit(priority=priority, sampling=Sampling(grammar=None))):
                self._engine.record_arrival(priority)

    def stop(self) -> None:
        """After the step that runs."""
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._yields:
            _yield_to_others()
        try:
            while self._serve():
                pass
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._failed(error)

    def _serve(self) -> bool:
        """One step, or one wait for commands. False when told to stop."""
        engine = self._engine
        if not self._take_commands(wait=not engine.has_work):
            return False
        if engine.has_work:
            engine.step()
        else:
            engine.busy_meter.idle_until(engine.clock_ns())
        self._send_if_any(self._link_handler.report(engine.clock_ns()))
        return True

    def _take_commands(self, *, wait: bool) -> bool:
        """All that have come; with `wait` it sleeps for the first. The time until then was idle."""
        while True:
            try:
                command = self._commands.get(block=wait, timeout=IDLE_REPORT_S)
            except queue.Empty:
                return True
            if wait:
                self._engine.busy_meter.idle_until(self._engine.clock_ns())
                wait = False
            if command is None:
                return False
            self._send_if_any(self._link_handler.take(command, self._engine.clock_ns()))

    def _send_if_any(self, outgoing: list[Outgoing]) -> None:
        if outgoing:
            self._send(outgoing)


def _yield_to_others() -> None:
    """Of this thread and those that it starts: as large a share of the time as any, but who wakes up goes first. Under Linux
    only. A first token came up to three times as late beside busy workers without it (docs/log.md)."""
    if sys.platform == "linux":
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
