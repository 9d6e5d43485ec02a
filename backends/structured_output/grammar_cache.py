"""Compiled grammars by tenant: no tenant finds another's, nor drives it out."""

import threading
from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from backends.wire import Grammar

T = TypeVar("T")


class _Entry(NamedTuple, Generic[T]):
    value: T
    num_bytes: int


class GrammarCache(Generic[T]):
    """At most `max_bytes` together, and half of it for one tenant. The least recently used of the tenant goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, Grammar], _Entry[T]] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, tenant: str, grammar: Grammar) -> T | None:
        with self._lock:
            entry = self._entries.get((tenant, grammar))
            if entry is None:
                return None
            self._entries.move_to_end((tenant, grammar))
            return entry.value

    def put(self, tenant: str, grammar: Grammar, value: T, num_bytes: int) -> None:
        with self._lock:
            if (tenant, grammar) in self._entries or num_bytes > self._max_bytes // 2:
                return
            self._entries[tenant, grammar] = _Entry(value, num_bytes)
            self._bytes[tenant] = self._bytes.get(tenant, 0) + num_bytes
            while self._bytes[tenant] > self._max_bytes // 2:
                self._drop(tenant)
            while sum(self._bytes.values()) > self._max_bytes:
                self._drop(max(self._bytes, key=self._bytes.__getitem__))

    def _drop(self, tenant: str) -> None:
        key = next(key for key in self._entries if key[0] == tenant)
        self._bytes[tenant] -= self._entries.pop(key).num_bytes
        if not self._bytes[tenant]:
            del self._bytes[tenant]
