"""API keys beside the ledger: made, listed and revoked by a command, followed by running gateways. Bounded.

Of a key the store has its SHA-256 and how it begins. A plain hash is right here, and a slow or salted one is not needed: keys
are 32 random bytes, so that nobody can try them all, and no two are alike. It also has to be cheap: every request is checked.
"""

import base64
import hashlib
import secrets
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from gateway.ledger.rows import KeyRow
from gateway.ledger.store import Store, Values, select
from gateway.policy.schema import RateLimits

Read = Callable[[str, Values], list[dict[str, Any]]]

MAX_KEYS = 10_000
_KEY_BYTES = 32
_SHOWN_CHARS = 9
"""Of 46: `hw-` and 36 bits; of what stays secret there are 220."""
_ALL = "SELECT * FROM api_keys ORDER BY created_at, id"


class KeyStoreError(ValueError):
    """What was asked cannot be done; the message says why."""


class CreatedKey(NamedTuple):
    """`key` is shown once and kept nowhere."""

    key: str
    row: KeyRow


def create(store: Store, tenant: str, limits: RateLimits, now: float) -> CreatedKey:
    """`now` is Unix time. Raises KeyStoreError when there are MAX_KEYS in force, or sqlite3.Error."""
    key = "hw-" + base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).decode().rstrip("=")
    row = KeyRow(
        id=f"key-{secrets.token_hex(6)}",
        tenant=tenant,
        prefix=key[:_SHOWN_CHARS],
        digest=hashlib.sha256(key.encode()).digest(),
        created_at=now,
        requests_per_minute=limits.requests_per_minute or 0,
        tokens_per_minute=limits.tokens_per_minute or 0,
        concurrent_requests=limits.concurrent_requests or 0,
        changed=0,
    )

    def add(rows: list[KeyRow]) -> KeyRow:
        if sum(not one.revoked_at for one in rows) >= MAX_KEYS:
            raise KeyStoreError(f"there are {MAX_KEYS:,} keys, which is the limit: revoke some with `headway keys revoke ID`")
        return row

    return CreatedKey(key, _change(store, add))


def revoke(store: Store, name: str, now: float) -> KeyRow:
    """`name` is the key's id, or how it begins where that is one key's alone. Raises KeyStoreError or sqlite3.Error."""

    def end(rows: list[KeyRow]) -> KeyRow:
        found = [row for row in rows if row.id == name or (len(name) >= _SHOWN_CHARS and name.startswith(row.prefix))]
        if len(found) != 1:
            problem = "there is no such key" if not found else f"{len(found)} keys begin so: name one by its id"
            raise KeyStoreError(f"{name[: _SHOWN_CHARS + 8]}: {problem} (`headway keys list` shows them)")
        if found[0].revoked_at:
            raise KeyStoreError(f"{found[0].id} was revoked before")
        return msgspec.structs.replace(found[0], revoked_at=now)

    return _change(store, end)


def stored_keys(read: Read) -> list[KeyRow]:
    """Also those that were revoked. Blocks."""
    return msgspec.convert(read(_ALL, ()), list[KeyRow])


def last_change(read: Read) -> int:
    """Another number after every change. Blocks, shortly."""
    (row,) = read("SELECT max(changed) AS last FROM api_keys", ())
    return row["last"] or 0


def last_uses(read: Read) -> dict[str, float]:
    """Unix times by id. Blocks."""
    return {row["id"]: row["at"] for row in read("SELECT id, at FROM key_uses", ())}


def limits_of(row: KeyRow) -> RateLimits:
    return RateLimits(
        requests_per_minute=row.requests_per_minute or None,
        tokens_per_minute=row.tokens_per_minute or None,
        concurrent_requests=row.concurrent_requests or None,
    )


def _change(store: Store, change: Callable[[list[KeyRow]], KeyRow]) -> KeyRow:
    """One row, in a transaction of its own: two commands at once see each other."""
    connection = store.connection
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = stored_keys(lambda query, values: select(connection, query, values))
        row = msgspec.structs.replace(change(rows), changed=1 + max((one.changed for one in rows), default=0))
        names = KeyRow.__struct_fields__
        query = f"INSERT OR REPLACE INTO api_keys ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        connection.execute(query, msgspec.structs.astuple(row))
        connection.execute("COMMIT")
    except (KeyStoreError, sqlite3.Error):
        connection.execute("ROLLBACK")
        raise
    return row
