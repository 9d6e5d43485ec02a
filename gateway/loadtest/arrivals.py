"""Schedule of requests and their lengths, fixed before the first is sent. Pure: randomness is an argument."""

import csv
import gzip
import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Literal, NamedTuple

import msgspec

Arrivals = Literal["poisson", "constant"]


class Planned(NamedTuple):
    """One request: seconds after the start, and lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


class TraceError(ValueError):
    """A trace file is invalid. The message has the file, the line and the expected format."""


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int


def steady(
    rate: float, duration_s: float, lengths: tuple[int, int], *, arrivals: Arrivals, rng: random.Random
) -> Iterator[Planned]:
    """Yield `rate` requests a second, all with the same lengths (prompt, answer) in tokens."""
    at = 0.0
    while True:
        at += rng.expovariate(rate) if arrivals == "poisson" else 1.0 / rate
        if at >= duration_s:
            return
        yield Planned(at, *lengths)


def scaled(trace: Sequence[Planned], rate: float, duration_s: float, *, start: int = 0) -> list[Planned]:
    """Scale a trace to this rate and duration. Requests are taken from number `start` on, wrapping at the end.

    Gaps keep their proportions, so that bursts remain; lengths are unchanged. Raises ValueError for an empty trace.
    """
    if not trace:
        raise ValueError("the trace is empty")
    count = max(1, round(rate * duration_s))
    gaps = [max(0.0, b.at_s - a.at_s) for a, b in pairwise(trace)]
    gaps.append(sum(gaps) / len(gaps) if gaps else 1.0)  # from the last request to the first
    places = [(start + number) % len(trace) for number in range(count)]
    taken = [gaps[place] for place in places]
    stretch = duration_s / (sum(taken) or 1.0)
    planned, at = [], 0.0
    for place, gap in zip(places, taken, strict=True):
        planned.append(trace[place]._replace(at_s=at))
        at += gap * stretch
    return planned


def until(trace: Sequence[Planned], duration_s: float) -> list[Planned]:
    """Return the requests of the first `duration_s` seconds at the trace's own rate."""
    return [request for request in trace if request.at_s < duration_s]


def read_trace(path: Path) -> list[Planned]:
    """Read CSV with TIMESTAMP,ContextTokens,GeneratedTokens or JSON lines with timestamp (ms), input_length, output_length.

    Either may be gzipped. The result is in order of time and starts at 0. Raises TraceError or OSError.
    """
    with _open(path) as lines:
        read = _mooncake if ".jsonl" in path.suffixes else _azure
        planned = sorted(read(path, lines))
    if not planned:
        raise TraceError(f"{path} holds no requests")
    first = planned[0].at_s
    return [request._replace(at_s=request.at_s - first) for request in planned]


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _azure(path: Path, lines: Iterable[str]) -> Iterator[Planned]:
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            yield Planned(at, int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"])))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: expected TIMESTAMP,ContextTokens,GeneratedTokens: {error!r}") from error


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[Planned]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, line in enumerate(lines, 1):
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise TraceError(f"{path}:{number}: expected timestamp, input_length, output_length: {error}") from error
        yield Planned(row.timestamp / 1000, row.input_length, max(1, row.output_length))
