"""The engine's thread. It sleeps while there is no work and takes all pending commands between steps."""

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
"""Seconds between the idle reports of an idle worker."""


class EngineThread:
    """`send` is called on the engine's thread with outgoing frames. `failed` is called once if a step raises, and ends the
    engine.

    With `yields`, threads that wake briefly to pass on a message get the processor before this one.
    """

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
        """Stop after the step under way."""
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
        """Run one step, or wait once for commands. Return False after a stop."""
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
        """Take all pending commands. With `wait`, sleep until the first one and count the time as idle. Return False after a
        stop.
        """
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
    """Set this thread and those it starts to SCHED_BATCH: an equal share of processor time, but threads that wake up run first.
    Linux only. Without it a first token took up to three times as long beside busy workers (docs/log.md).
    """
    if sys.platform == "linux":
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
