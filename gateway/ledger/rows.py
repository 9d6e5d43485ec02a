"""Rows of the ledger, one struct a table. A new field needs a default, the last place and a migration (store.py)."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Rows(Protocol):
    """Rows that are built later, in the ledger's thread."""

    def rows(self) -> "Sequence[Row]": ...


class RequestRow(msgspec.Struct, frozen=True, kw_only=True, tag="requests"):
    """One request. A rejected one has no model, worker and decision, and spent nothing.

    `at` is Unix time; `status` a finish reason or an error code; `run` the id as the client knows it. `slo_met` is valid only
    if `slo_counted`: caller errors do not count against the SLO. `key_id` is the key's name, not the key. `cut` names
    the reported fields that exceeded their bounds and were cut to them. `asked_digest` is that of the messages, for labels.
    """

    decision: str
    at: float
    tenant: str
    run: str
    chain: str
    asked: str
    model: str
    worker: str
    route: str
    reason: str
    status: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: float
    ttft_s: float
    total_s: float
    device_s: float
    usd: float
    saved_usd: float
    all_large_usd: float
    slo_met: bool
    request: str = ""
    tier: str = ""
    outcome: str = "ok"
    http_status: int = 200
    slo: str = ""
    slo_counted: bool = True
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_steps: int = 0
    mean_batch: float = 0.0
    num_attempts: int = 1
    trace: str = ""
    key_id: str = ""
    cut: str = ""
    asked_digest: str = ""


class DecisionRow(msgspec.Struct, frozen=True, kw_only=True, tag="decisions"):
    """One decision. `body` is the Decision as JSON."""

    id: str
    at: float
    body: bytes


class RunRow(msgspec.Struct, frozen=True, kw_only=True, tag="runs"):
    """Sums of an ended run. A later row of the same run replaces it."""

    run: str
    tenant: str
    source: str
    first_seen: float
    last_seen: float
    turns: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    device_s: float
    usd: float
    saved_usd: float
    all_large_usd: float


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True, tag="device_time"):
    """A worker's time since its last row, in seconds and dollars: charged + unattributed + idle is the price of that time."""

    at: float
    worker: str
    model: str
    busy_s: float
    idle_s: float
    charged_usd: float
    unattributed_usd: float
    idle_usd: float


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True, tag="policies"):
    """A policy that was put in force. `body` is JSON without secrets, `digest` its hash."""

    at: float
    digest: str
    body: bytes


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True, tag="outcomes"):
    """Quality label of one answer. `body` is the Outcome as JSON, empty if the label came without text."""

    at: float
    tenant: str
    run: str
    request: str
    decision: str
    model: str
    tier: str
    score: float
    body: bytes = b""


class KeyRow(msgspec.Struct, frozen=True, kw_only=True, tag="api_keys"):
    """An API key in the key store. `digest` is its SHA-256, `prefix` its first characters, to tell keys apart. A limit or time
    of 0 means none. `changed` is the number of the store's change that last wrote this key."""

    id: str
    tenant: str
    prefix: str
    digest: bytes
    created_at: float
    requests_per_minute: int
    tokens_per_minute: int
    concurrent_requests: int
    changed: int
    revoked_at: float = 0.0


class KeyUseRow(msgspec.Struct, frozen=True, kw_only=True, tag="key_uses"):
    """Last use of a stored key, as Unix time. A later row replaces it."""

    id: str
    at: float


class HoldRow(msgspec.Struct, frozen=True, kw_only=True, tag="holds"):
    """Budget reservation of a request in flight. It is deleted when the request's row is inserted. A row found at startup was
    in flight when a gateway was killed."""

    request: str
    at: float
    route: str
    tenant: str
    key_id: str
    run: str
    usd: float
    tokens: int
    turns: int


class ResponseRow(msgspec.Struct, frozen=True, kw_only=True, tag="responses"):
    """A stored response. `messages` are the conversation that it ends, `body` the response as sent, `size` the bytes of both.
    A row without a body deletes the stored one."""

    tenant: str
    id: str
    at: float
    size: int
    messages: bytes
    body: bytes


Row = HoldRow | RequestRow | DecisionRow | RunRow | DeviceRow | PolicyRow | OutcomeRow | KeyRow | KeyUseRow | ResponseRow
KINDS: tuple[type[Row], ...] = (
    HoldRow, RequestRow, DecisionRow, RunRow, DeviceRow, PolicyRow, OutcomeRow, KeyRow, KeyUseRow, ResponseRow,
)  # fmt: skip


def table(kind: type[Row]) -> str:
    return str(kind.__struct_config__.tag)
