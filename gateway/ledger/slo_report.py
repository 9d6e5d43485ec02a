"""SLO report: attainment and burn rate by class, times to first token, and rejections by reason."""

import msgspec

from gateway.ledger.scope import Read, Scope

OBJECTIVE = 0.99
"""Share of requests that should meet their SLO. The burn rate is the share of misses over the allowed hundredth."""


class SloAttainment(msgspec.Struct, frozen=True, kw_only=True):
    """One SLO class. Rejected and aborted requests count as missed; caller errors do not count."""

    slo: str
    counted: int
    met: int
    p50_ttft_s: float | None
    p95_ttft_s: float | None
    p99_ttft_s: float | None
    attainment: float = 0.0
    burn: float = 0.0


class SloPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One SLO class in one step of a series, which starts at Unix time `at`."""

    at: int
    slo: str
    counted: int
    met: int
    p50_ttft_s: float | None
    p95_ttft_s: float | None
    p99_ttft_s: float | None


class RejectionCount(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that failed in one way. `outcome` is rejected, failed or aborted; `status` the error code."""

    outcome: str
    http_status: int
    status: str
    requests: int
    last_at: float


_PERCENTILES = ", ".join(
    f"min(CASE WHEN answered = 1 AND place >= {share} * num THEN ttft_s END) AS p{round(100 * share)}_ttft_s"
    for share in (0.5, 0.95, 0.99)
)


def attainment(read: Read, scope: Scope) -> list[SloAttainment]:
    """Return attainment by class, the class with most requests first."""
    rows = read(f"{_ranked(scope, 'slo')} GROUP BY slo HAVING sum(slo_counted) > 0 ORDER BY counted DESC", scope.where()[1])
    return [_with_burn(msgspec.convert(row, SloAttainment)) for row in rows]


def _with_burn(line: SloAttainment) -> SloAttainment:
    return msgspec.structs.replace(line, attainment=line.met / line.counted, burn=burn(line.met, line.counted))


def burn(met: int, counted: int) -> float:
    """Return the burn rate: the share of misses over the share that OBJECTIVE allows."""
    return (1.0 - met / counted) / (1.0 - OBJECTIVE)


def attainment_over_time(read: Read, scope: Scope) -> list[SloPoint]:
    step = scope.step_s
    bucket = f"CAST(at / {step} AS INTEGER)"
    rows = read(f"{_ranked(scope, 'slo', bucket)} GROUP BY slo, bucket ORDER BY bucket, slo", scope.where()[1])
    return [msgspec.convert({**row, "at": row["bucket"] * step}, SloPoint) for row in rows]


def _ranked(scope: Scope, *groups: str) -> str:
    """Return a query that ranks answered requests by TTFT within each group, for nearest-rank percentiles."""
    where, _ = scope.where()
    bucket = groups[1] if len(groups) > 1 else "0"
    part = f"PARTITION BY slo, {bucket}, outcome = 'ok'"
    return (
        "SELECT slo, bucket, sum(slo_counted) AS counted, sum(slo_counted * slo_met) AS met, "
        f"{_PERCENTILES} FROM (SELECT slo, {bucket} AS bucket, slo_counted, slo_met, ttft_s,"
        f" CASE WHEN outcome = 'ok' THEN 1 ELSE 0 END AS answered, row_number() OVER ({part} ORDER BY ttft_s) AS place,"
        f" count(*) OVER ({part}) AS num FROM requests WHERE {where} AND slo <> '') AS ranked"
    )


def rejections(read: Read, scope: Scope) -> list[RejectionCount]:
    """Return counts by reason, the most frequent first."""
    where, values = scope.where()
    rows = read(
        "SELECT outcome, http_status, status, count(*) AS requests, max(at) AS last_at FROM requests"
        f" WHERE {where} AND outcome <> 'ok' GROUP BY outcome, http_status, status ORDER BY requests DESC, status",
        values,
    )
    return msgspec.convert(rows, list[RejectionCount])
