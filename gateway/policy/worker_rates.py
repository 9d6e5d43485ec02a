"""What a worker takes for a step, a prompt token and an output token."""

from typing import NamedTuple


class WorkerRates(NamedTuple):
    """Seconds: a request's fixed cost, one uncached prompt token, one output token (as waited for, and as device time)."""

    overhead_s: float
    prefill_s_per_token: float
    tpot_s: float
    decode_device_s_per_token: float
