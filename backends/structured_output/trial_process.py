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
from typing import IO

import msgspec

from backends.wire import Grammar

HEAD_BYTES = 8


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What a grammar compiler needs to know of a model. `kind` is the number of xgrammar's VocabType."""

    texts: list[str]
    kind: int
    size: int
    stop_tokens: list[int]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    grammar: Grammar
    max_s: float
    max_bytes: int


class Tried(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`rules` are the checked grammar as xgrammar's JSON. `problem` says why there are none."""

    rules: str = ""
    answer_bytes: float = 0.0
    part_bytes: float = 0.0
    compile_s: float = 0.0
    problem: str = ""


def write_frame(file: IO[bytes], data: bytes) -> None:
    file.write(len(data).to_bytes(HEAD_BYTES, "little") + data)
    file.flush()


def read_frame(file: IO[bytes]) -> bytes | None:
    """Return the next frame, or None at the end of the file."""
    head = file.read(HEAD_BYTES)
    data = file.read(int.from_bytes(head, "little")) if len(head) == HEAD_BYTES else b""
    return data or None


def main() -> None:
    from backends.structured_output.grammar import compiler_of, try_grammar

    sent, out = sys.stdin.buffer, sys.stdout.buffer
    first = read_frame(sent)
    if first is None:
        return
    compiler = compiler_of(msgspec.msgpack.decode(first, type=Vocabulary))
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
