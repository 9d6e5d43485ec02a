"""What must hold after every round at a border of the gateway."""

import asyncio
import math
from pathlib import Path
from typing import Any

from gateway.commands.ledger import compare
from gateway.fleet.bounds import NOMINAL_STEP_S, PREAMBLE_TOKENS, WALL_TOLERANCE_S
from gateway.ledger.ledger import SqliteLedger
from tests.served import Served, ask, until

OTHER = {"authorization": "Bearer other"}
KEYS = "tenants: {fuzzed: {keys: [fuzzed]}, other: {keys: [other]}}"
MAX_BODY_BYTES = 200_000
"""Bytes of the largest body of a fuzz, which bounds the tokens of its prompt."""


async def other_is_served(one: Served, **more: Any) -> None:
    """Assert that another tenant's request is answered."""
    async with one.http.post(f"{one.url}/v1/chat/completions", json=ask(**more), headers=OTHER) as answer:
        assert answer.status == 200, (answer.status, await answer.text())


async def nothing_ended(one: Served) -> None:
    """Assert that no task or thread failed, and that the metrics are whole."""
    background = one.gateway.fleet.background
    assert not any(background.restarts.values()) and not background.problems, background.restarts
    ledger = one.gateway.ledger
    assert isinstance(ledger, SqliteLedger)
    assert not ledger.restarts and not ledger.dropped and ledger._thread.is_alive(), ledger.error
    one.gateway.budgets.check()
    one.gateway.rates.check()
    async with one.http.get(f"{one.url}/metrics") as answer:
        assert answer.status == 200


async def charges_are_bounded(one: Served, path: Path) -> None:
    """Assert that no row has a charge beyond its bound, and that the ledger equals the counters."""
    ledger, fleet = one.gateway.ledger, one.gateway.fleet
    price = max([*fleet.usd_per_s.values(), 0.0])
    tokens = MAX_BODY_BYTES + PREAMBLE_TOKENS
    by_token = max((u.policy.prices.usd(tokens, 0, tokens) for u in fleet.upstreams.values()), default=0.0)
    rows = await asyncio.to_thread(ledger.read, "SELECT * FROM requests")
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, int | float)]
        assert all(math.isfinite(value) and value >= 0 for value in numbers), row
        attempts = max(1, row["num_attempts"])
        most = attempts * ((row["total_s"] + WALL_TOLERANCE_S + 8 * NOMINAL_STEP_S) * price + by_token)
        assert row["usd"] <= most, row
        assert row["output_tokens"] < 2**31 and row["prompt_tokens"] < 2**31, row
    async with one.http.get(f"{one.url}/metrics") as answer:
        metrics = await answer.text()
    await until(lambda: all(part.is_equal for part in compare(metrics, path)), 10.0)
