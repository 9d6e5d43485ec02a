"""Flows that are being shed, whose next requests are refused without tokenizing. Pure: time is an argument."""

import math
from collections import OrderedDict
from typing import NamedTuple

SHEDDING_S = 0.25
"""Seconds for which a refusal marks its flow. Derived: at 32 requests per second one in eight is evaluated in this time."""
EVALUATE_EVERY = 8
"""Of a flow that is being shed, one request in so many is evaluated in full, so that the end of an overload is detected."""
MAX_FLOWS = 1024


class FlowKey(NamedTuple):
    """Key of requests that are expected to have the same candidates. `asked` is the requested model."""

    tenant: str
    route: str
    slo: str
    asked: str


class ShedGate:
    """The flows of the last refusals, at most MAX_FLOWS."""

    def __init__(self) -> None:
        self._refused_at = OrderedDict[FlowKey, float]()
        self._num_seen = 0

    def record_refusal(self, flow: FlowKey, now: float) -> None:
        self._refused_at[flow] = now
        self._refused_at.move_to_end(flow)
        if len(self._refused_at) > MAX_FLOWS:
            self._refused_at.popitem(last=False)

    def is_open(self, now: float) -> bool:
        """Return whether no flow is being shed."""
        return not self._refused_at or now - next(reversed(self._refused_at.values())) > SHEDDING_S

    def is_shedding(self, flow: FlowKey, now: float) -> bool:
        """Return whether the next request of a flow may be refused early. False for one in EVALUATE_EVERY."""
        if now - self._refused_at.get(flow, -math.inf) > SHEDDING_S:
            return False
        self._num_seen += 1
        return self._num_seen % EVALUATE_EVERY != 0
