"""W3C trace context: the caller's trace headers, and the ids of a request's own spans."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
_MAX_TRACESTATE = 512
"""Characters of `tracestate` that the W3C recommendation requires to be propagated."""


class Parent(NamedTuple):
    """Span of the caller."""

    trace_id: int
    span_id: int
    sampled: bool


class Trace(NamedTuple):
    """Span ids of a recorded request. They are made on arrival, so that they can be sent to a worker."""

    trace_id: int
    server_id: int
    chat_id: int
    parent_id: int | None = None
    state: str = ""

    @property
    def traceparent(self) -> str:
        """Return the header for workers and upstreams: their spans are children of `chat`."""
        return f"00-{self.trace_id:032x}-{self.chat_id:016x}-01"


def read_traceparent(header: str) -> Parent | None:
    """Parse a header of version 00 or later; None when it is invalid."""
    match = _TRACEPARENT.match(header)
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    return Parent(trace_id, span_id, bool(flags & 1))


def trace_of(headers: Mapping[str, str]) -> str:
    """Return the caller's trace id, 32 hexadecimal digits; empty for none."""
    parent = read_traceparent(headers.get("traceparent", ""))
    return f"{parent.trace_id:032x}" if parent else ""


def read_tracestate(header: str) -> str:
    """Return the header unchanged, or "" if it is too long."""
    return header if len(header) <= _MAX_TRACESTATE else ""
