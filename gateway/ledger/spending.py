"""Cost reports: sums of the ledger by tenant, model, run or day, idle time, and both over time."""

from typing import Literal, get_args

import msgspec

from gateway.ledger.scope import Read, Scope

By = Literal["tenant", "model", "run", "day"]
BYS: tuple[By, ...] = get_args(By)

_KEYS: dict[By, str] = {
    "tenant": "tenant",
    "model": "model",
    "run": "run",
    "day": "strftime('%Y-%m-%d', at, 'unixepoch')",
}


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of the requests of one group key: dollars charged, saved, and on the large tier alone (cost.py)."""

    key: str
    tenant: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    device_s: float
    usd: float
    saved_usd: float
    all_large_usd: float
    first_at: float
    last_at: float


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's seconds and dollars; charged + unattributed + idle is the price of the reported time."""

    worker: str
    model: str
    busy_s: float
    idle_s: float
    charged_usd: float
    unattributed_usd: float
    idle_usd: float


class SpendPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars of one step of a series, which starts at Unix time `at`."""

    at: int
    usd: float = 0.0
    saved_usd: float = 0.0
    all_large_usd: float = 0.0
    idle_usd: float = 0.0


def spending(read: Read, scope: Scope, by: By, *, limit: int = 1000) -> list[Spending]:
    """Return sums by key, the most expensive first, days in order. Runs of the same id in two tenants are kept apart."""
    where, values = scope.where()
    group = "tenant, key" if by == "run" else "key"
    order = "key" if by == "day" else "usd DESC, key"
    rows = read(
        f"SELECT {_KEYS[by]} AS key, CASE WHEN count(DISTINCT tenant) = 1 THEN min(tenant) ELSE '' END AS tenant,"
        " count(*) AS requests, sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,"
        " sum(output_tokens) AS output_tokens, sum(device_s) AS device_s, sum(usd) AS usd, sum(saved_usd) AS saved_usd,"
        " sum(all_large_usd) AS all_large_usd, min(at) AS first_at, max(at + total_s) AS last_at"
        f" FROM requests WHERE {where} GROUP BY {group} ORDER BY {order} LIMIT ?",
        (*values, limit),
    )
    return msgspec.convert(rows, list[Spending])


def idle(read: Read, scope: Scope) -> list[Idle]:
    rows = read(
        "SELECT worker, model, sum(busy_s) AS busy_s, sum(idle_s) AS idle_s, sum(charged_usd) AS charged_usd,"
        " sum(unattributed_usd) AS unattributed_usd, sum(idle_usd) AS idle_usd"
        " FROM device_time WHERE at >= ? AND at < ? GROUP BY worker, model ORDER BY idle_usd DESC, worker",
        (scope.since, scope.until),
    )
    return msgspec.convert(rows, list[Idle])


def spending_over_time(read: Read, scope: Scope, *, with_idle: bool) -> list[SpendPoint]:
    """Return every step of the scope that has rows, in order."""
    step, (where, values) = scope.step_s, scope.where()
    parts = [
        f"SELECT CAST(at / {step} AS INTEGER) * {step} AS start, usd, saved_usd, all_large_usd, 0.0 AS idle_usd"
        f" FROM requests WHERE {where}"
    ]
    if with_idle:
        parts.append(
            f"SELECT CAST(at / {step} AS INTEGER) * {step} AS start, 0.0, 0.0, 0.0, idle_usd"
            " FROM device_time WHERE at >= ? AND at < ?"
        )
        values = (*values, scope.since, scope.until)
    rows = read(
        "SELECT start AS at, sum(usd) AS usd, sum(saved_usd) AS saved_usd, sum(all_large_usd) AS all_large_usd,"
        f" sum(idle_usd) AS idle_usd FROM ({' UNION ALL '.join(parts)}) AS spent GROUP BY start ORDER BY start",
        values,
    )
    return msgspec.convert(rows, list[SpendPoint])
