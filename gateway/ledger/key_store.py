"""API keys in the ledger's file: created, listed and revoked by a command, followed by running gateways. Bounded.

The store holds a key's SHA-256 and its first characters. A slow or salted hash is not needed: keys are 32 random bytes, which
cannot be guessed and do not repeat. The hash must be cheap, as it is computed for every request.
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
"""Characters shown of 46: `hw-` and 36 bits. The other 220 bits stay secret."""
_ALL = "SELECT * FROM api_keys ORDER BY created_at, id"


class KeyStoreError(ValueError):
    """The requested change is not possible; the message says why."""


class CreatedKey(NamedTuple):
    """A new key and its row. `key` is shown once and never stored."""

    key: str
    row: KeyRow


def create(store: Store, tenant: str, limits: RateLimits, now: float) -> CreatedKey:
    """Create a key. `now` is Unix time. Raises KeyStoreError when MAX_KEYS are in force, or sqlite3.Error."""
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
        if sum(not key.revoked_at for key in rows) >= MAX_KEYS:
            raise KeyStoreError(f"there are {MAX_KEYS:,} keys, which is the limit: revoke some with `headway keys revoke ID`")
        return row

    return CreatedKey(key, _change(store, add))


def revoke(store: Store, name: str, now: float) -> KeyRow:
    """Revoke a key. `name` is its id, or a prefix that only one key has. Raises KeyStoreError or sqlite3.Error."""

    def end(rows: list[KeyRow]) -> KeyRow:
        matches = [row for row in rows if row.id == name or (len(name) >= _SHOWN_CHARS and name.startswith(row.prefix))]
        if len(matches) != 1:
            problem = "there is no such key" if not matches else f"{len(matches)} keys begin so: name one by its id"
            raise KeyStoreError(f"{name[: _SHOWN_CHARS + 8]}: {problem} (`headway keys list` shows them)")
        if matches[0].revoked_at:
            raise KeyStoreError(f"{matches[0].id} was revoked before")
        return msgspec.structs.replace(matches[0], revoked_at=now)

    return _change(store, end)


def stored_keys(read: Read) -> list[KeyRow]:
    """Return all keys, also revoked ones. Blocks."""
    return msgspec.convert(read(_ALL, ()), list[KeyRow])


def last_change(read: Read) -> int:
    """Return the number of the store's last change, for polling. Blocks briefly."""
    (row,) = read("SELECT max(changed) AS last FROM api_keys", ())
    return row["last"] or 0


def last_uses(read: Read) -> dict[str, float]:
    """Return the Unix time of each key's last use, by id. Blocks."""
    return {row["id"]: row["at"] for row in read("SELECT id, at FROM key_uses", ())}


def limits_of(row: KeyRow) -> RateLimits:
    return RateLimits(
        requests_per_minute=row.requests_per_minute or None,
        tokens_per_minute=row.tokens_per_minute or None,
        concurrent_requests=row.concurrent_requests or None,
    )


def _change(store: Store, change: Callable[[list[KeyRow]], KeyRow]) -> KeyRow:
    """Insert the row that `change` makes of all rows, in one transaction, so that concurrent commands are serialized."""
    connection = store.connection
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = stored_keys(lambda query, values: select(connection, query, values))
        row = msgspec.structs.replace(change(rows), changed=1 + max((key.changed for key in rows), default=0))
        names = KeyRow.__struct_fields__
        query = f"INSERT OR REPLACE INTO api_keys ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        connection.execute(query, msgspec.structs.astuple(row))
        connection.execute("COMMIT")
    except (KeyStoreError, sqlite3.Error):
        connection.execute("ROLLBACK")
        raise
    return row
