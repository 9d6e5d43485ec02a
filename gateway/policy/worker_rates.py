"""Times of a worker for one request, a prompt token and an output token."""

from typing import NamedTuple


class WorkerRates(NamedTuple):
    """Rates of a worker in seconds: a request's fixed cost, one uncached prompt token, one output token (latency, and device
    time)."""

    overhead_s: float
    prefill_s_per_token: float
    tpot_s: float
    decode_device_s_per_token: float
