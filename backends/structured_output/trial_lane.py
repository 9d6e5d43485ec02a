"""The worker's side of one process for trial compilations: started with the first trial, and again after it ended."""

import subprocess
import sys
import weakref

import msgspec

from backends.structured_output.trial import Trial, Tried, Vocabulary, read_frame, write_frame
from backends.wire import Grammar

MAX_BYTES = 1 << 30
"""Memory of one trial beyond the library's. A grammar of 100 optional properties takes 100 MB."""


class TrialLane:
    """Used by one thread at a time."""

    def __init__(self, vocabulary: Vocabulary, *, max_s: float) -> None:
        self._vocabulary, self._max_s = vocabulary, max_s
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, grammar: Grammar) -> Tried:
        """Try a grammar. Raises OSError if there is no process to try it in."""
        process = self._started()
        assert process.stdin and process.stdout
        trial = Trial(grammar=grammar, max_s=self._max_s, max_bytes=MAX_BYTES)
        write_frame(process.stdin, msgspec.msgpack.encode(trial))
        frame = read_frame(process.stdout)
        if frame is None:
            raise OSError("the process for trial compilations ended")
        return msgspec.msgpack.decode(frame, type=Tried)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "backends.structured_output.trial_process"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            weakref.finalize(self, _stop, self._process)
            assert self._process.stdin
            write_frame(self._process.stdin, msgspec.msgpack.encode(self._vocabulary))
        return self._process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
