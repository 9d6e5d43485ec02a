"""Summary of a time range: cost of its runs, burn rate of its SLO classes, and notable requests."""

from typing import Literal

import msgspec

from gateway.ledger.scope import Read, Scope
from gateway.ledger.slo_report import burn

MAX_MISSED = 6
MAX_COSTLIEST = 3

NotableReason = Literal["failed", "slo_missed", "costliest"]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    runs: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    usd: float
    saved_usd: float
    all_large_usd: float


class SloSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One SLO class. A burn rate of 1 misses exactly as many requests as the objective allows."""

    slo: str
    counted: int
    met: int
    burn: float = 0.0


class NotableRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that failed, missed its SLO, or is among the most expensive."""

    why: NotableReason
    at: float
    tenant: str
    run: str
    request: str
    model: str
    slo: str
    status: str
    ttft_s: float
    total_s: float
    usd: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    totals: Totals
    classes: list[SloSummary]
    notable: list[NotableRequest]


def summary(read: Read, scope: Scope) -> Summary:
    """Return the summary: the class with the highest burn first; the last failed requests, then the most expensive."""
    return Summary(totals=_totals(read, scope), classes=_classes(read, scope), notable=_notable(read, scope))


def _totals(read: Read, scope: Scope) -> Totals:
    where, values = scope.where()
    sums = ", ".join(
        f"coalesce(sum({name}), 0) AS {name}"
        for name in ("prompt_tokens", "cached_tokens", "usd", "saved_usd", "all_large_usd")
    )
    (row,) = read(
        "SELECT count(DISTINCT CASE WHEN run <> '' THEN tenant || '/' || run END) AS runs, count(*) AS requests,"
        f" {sums} FROM requests WHERE {where}",
        values,
    )
    return msgspec.convert(row, Totals, strict=False)


def _classes(read: Read, scope: Scope) -> list[SloSummary]:
    where, values = scope.where()
    rows = read(
        "SELECT slo, sum(slo_counted) AS counted, sum(slo_counted * slo_met) AS met FROM requests"
        f" WHERE {where} AND slo <> '' GROUP BY slo HAVING sum(slo_counted) > 0",
        values,
    )
    classes = [msgspec.convert({**row, "burn": burn(row["met"], row["counted"])}, SloSummary, strict=False) for row in rows]
    return sorted(classes, key=lambda line: (-line.burn, -line.counted))


def _notable(read: Read, scope: Scope) -> list[NotableRequest]:
    where, values = scope.where()
    columns = "at, tenant, run, request, model, slo, status, ttft_s, total_s, usd"
    missed = read(
        f"SELECT CASE WHEN outcome = 'failed' THEN 'failed' ELSE 'slo_missed' END AS why, {columns} FROM requests"
        f" WHERE {where} AND run <> '' AND (outcome = 'failed' OR (slo_counted = 1 AND slo_met = 0))"
        " ORDER BY at DESC LIMIT ?",
        (*values, MAX_MISSED),
    )
    costliest = read(
        f"SELECT 'costliest' AS why, {columns} FROM requests WHERE {where} AND run <> '' AND usd > 0 ORDER BY usd DESC LIMIT ?",
        (*values, MAX_COSTLIEST),
    )
    return msgspec.convert([*missed, *costliest], list[NotableRequest])
