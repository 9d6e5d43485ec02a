"""Sessions of a trace for the simulator: their main streams, cut at the first context that is too long."""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Turn(NamedTuple):
    """A turn. `shared` prompt tokens are those of the previous turn; `think_s` is the pause before this turn."""

    prompt: int
    shared: int
    output: int
    think_s: float
    finish: str


Session = tuple[Turn, ...]


def load(path: Path, *, max_context: int, max_think_s: float) -> list[Session]:
    """Load the sessions. Raises FileNotFoundError."""
    with gzip.open(path, "rt") as lines:
        traced = [json.loads(line) for line in lines]
    sessions = []
    for session in traced:
        for stream in session["streams"]:
            if stream["kind"] == "main":
                turns = tuple(_turns(stream["req"], session["bs"], max_context, max_think_s))
                if turns:
                    sessions.append(turns)
    return sessions


def _turns(requests: list[list[object]], block: int, max_context: int, max_think_s: float) -> Iterator[Turn]:
    for _, prompt, output, _, think, finish, shared, *_ in requests:
        assert isinstance(prompt, int) and isinstance(output, int) and isinstance(shared, int) and isinstance(finish, str)
        if prompt + output > max_context:
            return
        pause = think if isinstance(think, int | float) else 0.0
        yield Turn(prompt, min(shared * block, prompt - 1), max(1, output), min(max(0.0, pause), max_think_s), finish)


def endless(sessions: Sequence[Session], seed: int) -> Iterator[Session]:
    """Yield all sessions in a seeded order, repeatedly."""
    rng = random.Random(seed)
    while True:
        order = list(sessions)
        rng.shuffle(order)
        yield from order
