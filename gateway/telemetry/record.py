"""Record of one ended request, which metrics, spans and the ledger are written from."""

from typing import Literal

import msgspec

from gateway.routing.decision import Decision
from gateway.telemetry.trace_context import Trace

Outcome = Literal["ok", "rejected", "aborted", "failed"]


class LostAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that was charged and gave no answer. Times in seconds from the request's arrival."""

    worker: str
    model: str
    why: str
    started_s: float
    ended_s: float
    device_s: float
    usd: float
    confidence: float | None = None


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Message content as JSON of the GenAI conventions. Present only if capture is on."""

    system: str
    asked: str
    answered: str
    tools: str


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One ended request. Times in seconds from its arrival, `started_ns` on the wall clock. Tokens are of the answering
    attempt, device-seconds and dollars of all attempts. A request without a decision spent nothing.

    placed_s ── gateway's queue ── submitted_s ── worker_queue_s ── prefill_s ── first token (ttft_s) ── decode_s ── end
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
    cut: tuple[str, ...] = ()
    asked_digest: str = ""
    num_attempts: int = 1
    slo: str = ""
    slo_met: bool | None = None
    placed_s: float = 0.0
    submitted_s: float = 0.0
    worker_queue_s: float = 0.0
    num_steps: int = 0
    mean_batch: float = 0.0
    max_tokens: int = 0
    temperature: float = 0.0
    lost: tuple[LostAttempt, ...] = ()
    trace: Trace | None = None
    content: Content | None = None
    route: str = "/v1/chat/completions"
    key_id: str = ""
