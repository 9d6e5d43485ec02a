"""Ledger queries: runs, the turns of one run, one decision, the policies that were in force."""

from typing import Any

import msgspec

from gateway.ledger.rows import RequestRow
from gateway.ledger.scope import Read, Scope

_TURN = ", ".join(RequestRow.__struct_fields__)


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one run within the scope. `models` and `reasons` are joined by commas."""

    run: str
    tenant: str
    first_at: float
    last_at: float
    turns: int
    chains: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    device_s: float
    usd: float
    saved_usd: float
    all_large_usd: float
    models: str
    reasons: str
    failed: int
    slo_counted: int
    slo_met: int
    live: bool = False


class PolicyChange(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    digest: str
    body: msgspec.Raw


def runs(read: Read, scope: Scope, *, limit: int = 200) -> list[RunLine]:
    """Return at most `limit` runs, the last seen first."""
    where, values = scope.where()
    rows = read(
        "SELECT run, tenant, min(at) AS first_at, max(at + total_s) AS last_at, count(*) AS turns,"
        " count(DISTINCT chain) AS chains, sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,"
        " sum(output_tokens) AS output_tokens, sum(device_s) AS device_s, sum(usd) AS usd, sum(saved_usd) AS saved_usd,"
        " sum(all_large_usd) AS all_large_usd, group_concat(DISTINCT model) AS models,"
        " group_concat(DISTINCT reason) AS reasons,"
        " sum(CASE WHEN outcome = 'ok' THEN 0 ELSE 1 END) AS failed, sum(slo_counted) AS slo_counted,"
        f" sum(slo_counted * slo_met) AS slo_met FROM requests WHERE {where} AND run <> ''"
        " GROUP BY tenant, run ORDER BY last_at DESC LIMIT ?",
        (*values, limit),
    )
    return msgspec.convert(rows, list[RunLine])


def turns(read: Read, tenant: str, run: str, *, limit: int = 2000) -> list[RequestRow]:
    """Return the requests of a run in order of arrival, at most `limit`."""
    rows = read(f"SELECT {_TURN} FROM requests WHERE tenant = ? AND run = ? ORDER BY at LIMIT ?", (tenant, run, limit))
    return msgspec.convert(rows, list[RequestRow], strict=False)


def decision(read: Read, tenant: str | None, name: str) -> bytes | None:
    """Return the Decision as JSON; None when there is none, or it belongs to another tenant."""
    mine = "" if tenant is None else " AND EXISTS (SELECT 1 FROM requests WHERE decision = id AND tenant = ?)"
    rows = read(f"SELECT body FROM decisions WHERE id = ?{mine}", (name,) if tenant is None else (name, tenant))
    body: bytes | None = rows[0]["body"] if rows else None
    return body


def policies(read: Read, *, limit: int = 20) -> list[PolicyChange]:
    """Return at most `limit` policies, the one in force first."""
    rows: list[dict[str, Any]] = read("SELECT at, digest, body FROM policies ORDER BY at DESC LIMIT ?", (limit,))
    return [PolicyChange(at=row["at"], digest=row["digest"], body=msgspec.Raw(row["body"])) for row in rows]
