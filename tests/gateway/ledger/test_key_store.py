import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger import key_store
from gateway.ledger.key_store import KeyStoreError, create, last_change, limits_of, revoke, stored_keys
from gateway.ledger.rows import KeyUseRow
from gateway.ledger.store import Store, select
from gateway.policy.schema import RateLimits


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(Store(":memory:")) as store:
        yield store


def reader(store: Store) -> Any:
    return lambda query, values: select(store.connection, query, values)


def test_key_store_keeps_only_hash_and_prefix(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with closing(Store(str(file))) as store:
        key, row = create(store, "acme", RateLimits(tokens_per_minute=100), now=7.0)
        assert row == stored_keys(reader(store))[0]
    assert row.digest == hashlib.sha256(key.encode()).digest()
    assert key.startswith(row.prefix) and len(key) == 46 and len(row.prefix) == 9
    assert limits_of(row) == RateLimits(tokens_per_minute=100)
    assert key.encode()[9:] not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_every_change_shows(store: Store) -> None:
    read = reader(store)
    assert last_change(read) == 0
    _, first = create(store, "acme", RateLimits(), now=1.0)
    key, second = create(store, "acme", RateLimits(), now=1.0)
    assert last_change(read) == 2
    assert revoke(store, first.id, now=2.0).revoked_at == 2.0
    assert revoke(store, key, now=3.0).id == second.id
    assert last_change(read) == 4
    with pytest.raises(KeyStoreError, match="was revoked before"):
        revoke(store, first.id, now=4.0)
    with pytest.raises(KeyStoreError, match="no such key"):
        revoke(store, "hw-", now=4.0)
    assert last_change(read) == 4


def test_number_of_keys_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "MAX_KEYS", 1)
    _, row = create(store, "acme", RateLimits(), now=1.0)
    with pytest.raises(KeyStoreError, match="revoke some"):
        create(store, "acme", RateLimits(), now=1.0)
    revoke(store, row.id, now=2.0)
    create(store, "acme", RateLimits(), now=3.0)


def test_old_revoked_keys_are_deleted_but_one(store: Store) -> None:
    rows = [create(store, "acme", RateLimits(), now=1.0).row for _ in range(3)]
    for row in rows[:2]:
        store.insert([KeyUseRow(id=row.id, at=1.5)])
        revoke(store, row.id, now=2.0)
    while store.forget(10.0):
        pass
    assert {row.id for row in stored_keys(reader(store))} == {rows[1].id, rows[2].id}
    assert set(key_store.last_uses(reader(store))) == {rows[1].id}
    revoke(store, rows[2].id, now=3.0)
    while store.forget(10.0):
        pass
    assert [row.id for row in stored_keys(reader(store))] == [rows[2].id]
