"""W3C trace context: what came in with a request, and the ids under which its spans will be told."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
_MAX_TRACESTATE = 512
"""Characters that the W3C recommendation says to pass on at least."""


class Parent(NamedTuple):
    """The caller's span."""

    trace_id: int
    span_id: int
    sampled: bool


class Trace(NamedTuple):
    """Of a request that is recorded: the ids are made when it comes, so that a worker can be told them."""

    trace_id: int
    server_id: int
    chat_id: int
    parent_id: int | None = None
    state: str = ""

    @property
    def traceparent(self) -> str:
        """For whoever works for this request: its spans belong under `chat`."""
        return f"00-{self.trace_id:032x}-{self.chat_id:016x}-01"


def read_traceparent(header: str) -> Parent | None:
    """Version 00 or later; None when it is no such header."""
    found = _TRACEPARENT.match(header)
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return Parent(trace_id, span_id, bool(flags & 1))


def trace_of(headers: Mapping[str, str]) -> str:
    """The id of the trace that a request came in, 32 hexadecimal digits; empty for none."""
    parent = read_traceparent(headers.get("traceparent", ""))
    return f"{parent.trace_id:032x}" if parent else ""


def read_tracestate(header: str) -> str:
    """Passed on as it came, or not at all."""
    return header if len(header) <= _MAX_TRACESTATE else ""
