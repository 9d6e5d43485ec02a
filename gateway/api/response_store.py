"""Stored responses that clients may refer to: the body, and the conversation up to it.

The ledger keeps them. The newest are also in memory, because a row is written shortly after it is recorded. Without a ledger
file only those in memory exist.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from gateway.errors import NotFound
from gateway.ledger.rows import ResponseRow
from gateway.request import Message

MAX_AT_HAND = 10_000
MAX_BYTES_AT_HAND = 64 * 1024 * 1024
_READ = "SELECT messages, body FROM responses WHERE tenant = ? AND id = ?"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Message, ...]).decode


class ResponseLog(Protocol):
    """The part of the ledger that the store uses."""

    def record(self, row: ResponseRow) -> bool: ...

    def read(self, query: str, values: tuple[str, ...]) -> list[dict[str, Any]]: ...


class Stored(NamedTuple):
    """A stored response. `messages` is the whole conversation without instructions; `body` is the response sent to the
    client."""

    messages: bytes
    body: bytes

    def conversation(self) -> tuple[Message, ...]:
        return _decode(self.messages)


GONE = Stored(b"", b"")


class ResponseStore:
    """Stored responses by tenant and id. `now` returns Unix time."""

    def __init__(
        self,
        ledger: ResponseLog,
        now: Callable[[], float],
        *,
        max_at_hand: int = MAX_AT_HAND,
        max_bytes: int = MAX_BYTES_AT_HAND,
    ) -> None:
        self._ledger, self._now = ledger, now
        self._max_at_hand, self._max_bytes = max_at_hand, max_bytes
        self._at_hand: dict[str, OrderedDict[str, Stored]] = {}
        self._bytes_of = Counter[str]()

    def __len__(self) -> int:
        return sum(map(len, self._at_hand.values()))

    def put(self, tenant: str, id: str, messages: tuple[Message, ...], body: bytes) -> None:
        self._take(tenant, id, Stored(_encode(messages), body))

    async def get(self, tenant: str, id: str) -> Stored:
        """Return a stored response. Raises NotFound, also for one of another tenant."""
        own = self._at_hand.get(tenant)
        stored = own.get(id) if own else None
        if stored is None:
            rows = await asyncio.to_thread(self._ledger.read, _READ, (tenant, id))
            stored = Stored(**rows[0]) if rows else GONE
        if stored == GONE:
            raise NotFound(f"there is no response {id[:100]!r}: it was not stored, belongs to another tenant, or was evicted")
        return stored

    async def delete(self, tenant: str, id: str) -> None:
        """Delete a stored response. Raises NotFound."""
        await self.get(tenant, id)
        self._take(tenant, id, GONE)

    def _take(self, tenant: str, id: str, stored: Stored) -> None:
        size = _size(stored)
        self._ledger.record(ResponseRow(tenant=tenant, id=id, at=self._now(), size=size, **stored._asdict()))
        own = self._at_hand.setdefault(tenant, OrderedDict())
        self._bytes_of[tenant] += size - _size(own.pop(id, GONE))
        own[id] = stored
        while self._bytes_of.total() > self._max_bytes or len(self) > self._max_at_hand:
            self._evict()

    def _evict(self) -> None:
        """Drop the oldest response of the tenant that holds most: a tenant's crowd evicts its own."""
        over_bytes = self._bytes_of.total() > self._max_bytes
        tenant = max(self._at_hand, key=lambda name: self._bytes_of[name] if over_bytes else len(self._at_hand[name]))
        own = self._at_hand[tenant]
        self._bytes_of[tenant] -= _size(own.popitem(last=False)[1])
        if not own:
            del self._at_hand[tenant], self._bytes_of[tenant]


def _size(stored: Stored) -> int:
    return len(stored.messages) + len(stored.body)
