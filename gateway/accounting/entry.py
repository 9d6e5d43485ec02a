"""All that is to be told about one request when it has ended: what metrics, spans and the ledger are written from."""

from typing import Literal

import msgspec

from gateway.routing.decision import Decision

Outcome = Literal["ok", "rejected", "aborted", "failed"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds from the request's arrival, `started_ns` on the wall clock. Tokens are of the answering attempt,
    device-seconds and dollars of all attempts. Without a decision nothing was spent.
    """

    request_id: str
    tenant: str
    run: str
    chain: str
    asked: str
    outcome: Outcome
    status: int
    stream: bool
    started_ns: int
    duration_s: float
    error_code: str = ""
    finish_reason: str = ""
    decision: Decision | None = None
    queue_s: float = 0.0
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    device_s: float = 0.0
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    counterfactual_usd: float = 0.0
    num_attempts: int = 1
    slo_met: bool | None = None
    traceparent: str = ""
    route: str = "/v1/chat/completions"
