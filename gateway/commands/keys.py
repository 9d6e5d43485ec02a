"""`headway keys create|list|revoke`: the key store beside a ledger. It also works while a gateway uses it."""

import sqlite3
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from gateway.commands.format_table import columns
from gateway.ledger.key_store import KeyStoreError, create, last_uses, revoke, stored_keys
from gateway.ledger.rows import KeyRow
from gateway.ledger.store import Store, Values, select
from gateway.policy.load import PolicyError, load_policy
from gateway.policy.schema import RateLimits
from gateway.policy.yaml_document import did_you_mean

_HEADER = ("id", "tenant", "begins", "created", "last used", "requests/min", "tokens/min", "at once", "")


def create_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    """Create a key. Standard output has the key only; information about it goes to standard error."""
    try:
        tenants = load_policy(Path(arguments.policy), env).tenants
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    tenant = arguments.tenant
    if tenant not in tenants:
        known = did_you_mean(tenant, tenants) or ": add one under `tenants`"
        print(f'{arguments.policy} has no tenant "{tenant}"{known}', file=sys.stderr)
        return 1
    limits = RateLimits(
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
        concurrent_requests=arguments.concurrent_requests,
    )

    def work(store: Store) -> str:
        key, row = create(store, tenant, limits, time.time())
        print(f"{row.id} of {tenant}. This is the only time that the key is shown:", file=sys.stderr)
        return key

    return _with_store(arguments, env, work)


def list_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    def work(store: Store) -> str:
        def read(query: str, values: Values) -> list[dict[str, object]]:
            return select(store.connection, query, values)

        return keys_text(stored_keys(read), last_uses(read))

    return _with_store(arguments, env, work)


def revoke_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    def work(store: Store) -> str:
        row = revoke(store, arguments.key, time.time())
        return f"{row.id} of {row.tenant} is revoked: running gateways refuse it within seconds"

    return _with_store(arguments, env, work)


def keys_text(rows: Sequence[KeyRow], used_at: Mapping[str, float]) -> str:
    """Return a table, the oldest key first."""
    if not rows:
        return "there are no keys: create one with `headway keys create --tenant NAME`"
    lines = [
        (
            *(row.id, row.tenant, f"{row.prefix}...", _day(row.created_at), _day(used_at.get(row.id, 0.0))),
            *(f"{limit:,}" if limit else "-" for limit in (row.requests_per_minute, row.tokens_per_minute)),
            f"{row.concurrent_requests:,}" if row.concurrent_requests else "-",
            f"revoked {_day(row.revoked_at)}" if row.revoked_at else "",
        )
        for row in rows
    ]
    return columns([_HEADER, *lines], right=frozenset((5, 6, 7)))


def _with_store(arguments: Namespace, env: Mapping[str, str], work: Callable[[Store], str]) -> int:
    file = arguments.ledger or env.get("HEADWAY_LEDGER", "")
    if not file:
        print("headway: no ledger: name it with --ledger FILE or HEADWAY_LEDGER", file=sys.stderr)
        return 1
    try:
        with closing(Store(file)) as store:
            print(work(store))
    except (KeyStoreError, OSError, sqlite3.Error) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    return 0


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") if at else "never"
