"""Messages between a worker and its process for trial compilations, and their frames."""

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
