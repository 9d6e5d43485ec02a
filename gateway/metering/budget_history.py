"""Restores the spending of each budget from the ledger, so that a restart does not reset budgets.

A request in flight when a gateway was killed counts with its full reservation, as its actual use is unknown.
"""

from collections.abc import Mapping, Sequence

from gateway.ledger.scope import Read
from gateway.metering.budgets import MAX_ACCOUNTS, Amount, Budgets, Payers, window_start
from gateway.policy.schema import Budget, Policy, Route

_PAYERS = {"tenant": "tenant", "key": "tenant, key_id", "run": "tenant, run"}


def restore(budgets: Budgets, policy: Policy, read: Read, now: float) -> None:
    """Count every request that may have reached a worker in the window that contains `now` (Unix time). Blocks."""
    for name, budget in policy.budgets.items():
        routes = [label for route in policy.routes if name in route.budgets for label in _labels(route)]
        if not routes:
            continue
        for row in (*read(*_query(budget, routes, now)), *read(*_in_flight(budget, routes, now))):
            payers = Payers(str(row["tenant"]), str(row.get("key_id", "")), str(row.get("run", "")))
            spent = Amount(float(row["usd"]), int(row["tokens"]), int(row["turns"]))
            budgets.spend(name, payers, spent, now)


def _query(budget: Budget, routes: Sequence[str], now: float) -> tuple[str, tuple[str | float, ...]]:
    payers = _PAYERS[budget.per]
    marks = ", ".join("?" * len(routes))
    # The latest come last, so that they are the ones kept when there are more than MAX_ACCOUNTS.
    query = (
        f"SELECT * FROM (SELECT {payers}, sum(usd) AS usd, sum(prompt_tokens + output_tokens) AS tokens,"
        " count(DISTINCT request) AS turns, max(at) AS last FROM requests"
        f" WHERE at >= ? AND route IN ({marks}) GROUP BY {payers} ORDER BY last DESC LIMIT {MAX_ACCOUNTS}) AS latest"
        " ORDER BY last"
    )
    return query, (window_start(budget, now), *routes)


def _in_flight(budget: Budget, routes: Sequence[str], now: float) -> tuple[str, tuple[str | float, ...]]:
    payers = _PAYERS[budget.per]
    query = (
        f"SELECT {payers}, sum(usd) AS usd, sum(tokens) AS tokens, sum(turns) AS turns FROM holds"
        f" WHERE at >= ? AND route IN ({', '.join('?' * len(routes))}) GROUP BY {payers} LIMIT {MAX_ACCOUNTS}"
    )
    return query, (window_start(budget, now), *routes)


def _labels(route: Route) -> Mapping[str, None]:
    """Return the names that the route's requests have in the ledger: its own, and those of its arms."""
    return dict.fromkeys((route.name, *(f"{route.name}/{arm}" for arm in route.split)))
