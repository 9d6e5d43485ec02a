"""Trial compilations of grammars, each in a forked process that ends at a bound of time or memory.

This process loads the library and the vocabulary once. It is single-threaded, so that a fork is safe. It ends with its parent.
"""

import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

import msgspec

from backends.structured_output.grammar_compiler import compiler_for, tokenizer_info, try_grammar
from backends.structured_output.trial import Trial, Tried, Vocabulary, read_frame, write_frame


def main() -> None:
    sent, out = sys.stdin.buffer, sys.stdout.buffer
    first = read_frame(sent)
    if first is None:
        return
    compiler = compiler_for(tokenizer_info(msgspec.msgpack.decode(first, type=Vocabulary)))
    while (frame := read_frame(sent)) is not None:
        trial = msgspec.msgpack.decode(frame, type=Trial)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _limit(trial)
                with os.fdopen(writer, "wb") as result:
                    result.write(msgspec.msgpack.encode(try_grammar(compiler, trial.grammar)))
            finally:
                os._exit(0)
        os.close(writer)
        write_frame(out, _result(child, reader, trial))


def _limit(trial: Trial) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + trial.max_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _result(child: int, reader: int, trial: Trial) -> bytes:
    """Return the encoded result of a child, which has ended when this returns."""
    until, data, late = time.monotonic() + trial.max_s, bytearray(), False
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            late = True
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(reader, 1 << 20)
        if not part:
            break
        data += part
    os.close(reader)
    os.waitpid(child, 0)
    if data and not late:
        return bytes(data)
    bound = f"within {trial.max_s:g} s" if late else f"in {trial.max_bytes >> 20:,} MB"
    return msgspec.msgpack.encode(Tried(problem=f"its grammar was not compiled {bound}: make it smaller"))


if __name__ == "__main__":
    main()
