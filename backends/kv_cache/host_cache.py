"""Second-tier cache in host memory. Full pages are written through as they are hashed and are reloaded asynchronously.

    device page --save--> slot of the host --load--> a fresh device page

Copies run one at a time in request order, so they race only with compute. A sequence does not run while its pages are being
loaded. A step that writes to a page under a copy waits for that copy first.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from backends.kv_cache.prefix_cache import MAX_CHAINS_PER_PAGE, CacheDelta
from backends.kv_cache.retention_scores import RetentionScores

T = TypeVar("T")


class PendingCopy(Protocol):
    def done(self) -> bool: ...

    def wait(self) -> None: ...


class Copier(Protocol):
    """Copies that run in request order. `page_s` is the recent time of one page in seconds, 0 before the first copy."""

    @property
    def page_s(self) -> float: ...

    def save(self, pages: Sequence[int], slots: Sequence[int]) -> PendingCopy: ...

    def load(self, slots: Sequence[int], pages: Sequence[int]) -> PendingCopy: ...


class Fresh(NamedTuple):
    """A page of a chain that has become full, with its page hash."""

    name: bytes
    page: int
    chain: str


class _Copy(NamedTuple, Generic[T]):
    """A copy under way. `reader` waits for a load and is None for a save."""

    pending: PendingCopy
    pages: frozenset[int]
    reader: T | None


@dataclass(slots=True)
class _HostPage:
    slot: int
    chains: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Chain:
    """Pages of one chain in order of eviction, first to last: pages that its last turn did not use, then that turn's pages from
    the last to the first.
    """

    page_hashes: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    used_at: int = 0


class HostCache(Generic[T]):
    """Page hashes and the host slots that hold them.

    Eviction takes from the chain with the lowest score, and among equals from the least recently used one. A page that another
    chain shares stays in the cache. `scores` are shared with the prefix index.
    """

    def __init__(self, num_slots: int, copier: Copier) -> None:
        self.scores = RetentionScores()
        self.num_slots = num_slots
        self.num_loaded = 0
        self._copier = copier
        self._kept: dict[bytes, _HostPage] = {}
        self._chains: dict[str, _Chain] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._now = 0
        self._free = list(range(num_slots - 1, -1, -1))
        self._copies: deque[_Copy[T]] = deque()
        self._changes = CacheDelta()

    @property
    def page_s(self) -> float:
        """Return the recent time to load one page, in seconds."""
        return self._copier.page_s

    def page_hashes(self) -> list[bytes]:
        """Return all page hashes in the cache."""
        return list(self._kept)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Return hashes stored and removed since the last call, without those that were both."""
        return self._changes.take()

    @property
    def is_copying(self) -> bool:
        return bool(self._copies)

    def match(self, page_hashes: Sequence[bytes]) -> int:
        """Return how many of the leading hashes are cached."""
        return next((i for i, name in enumerate(page_hashes) if name not in self._kept), len(page_hashes))

    def save(self, fresh: Sequence[Fresh]) -> None:
        """Store pages that have become full. A page that is already cached gains the chain."""
        new: dict[bytes, Fresh] = {}
        for page in fresh:
            if (kept := self._kept.get(page.name)) is not None:
                self._join(page.name, kept, page.chain)
            elif len(new) < self.num_slots:
                new[page.name] = page
        slots = [self._take() for _ in new]
        for (name, page), slot in reversed(list(zip(new.items(), slots, strict=True))):
            self._kept[name] = kept = _HostPage(slot)
            self._join(name, kept, page.chain)
            self._changes.note(name, stored=True)
        if new:
            pages = [page.page for page in new.values()]
            self._copies.append(_Copy(self._copier.save(pages, slots), frozenset(pages), None))

    def load(self, page_hashes: Sequence[bytes], pages: Sequence[int], reader: T) -> None:
        """Copy matched pages into fresh device pages. `settle` returns `reader` when the copy is complete."""
        slots = [self._kept[name].slot for name in page_hashes]
        self.num_loaded += len(page_hashes)
        self._copies.append(_Copy(self._copier.load(slots, pages), frozenset(pages), reader))

    def touch(self, page_hashes: Sequence[bytes], chain: str) -> None:
        """Mark pages as used by a turn of the chain. A page is useless without its parents, so later pages count as used
        earlier.
        """
        for name in reversed(page_hashes):
            if (kept := self._kept.get(name)) is not None:
                self._join(name, kept, chain)
                self._chains[chain].page_hashes.move_to_end(name)
        if (state := self._chains.get(chain)) is not None:
            self._now += 1
            state.used_at = self._now
            self._make_evictable(chain, state)

    def set_retention(self, chain: str, score: float) -> None:
        """Apply a score that `scores` already holds. At 0 the chain ends: pages of this chain alone are evicted now."""
        state = self._chains.get(chain)
        if state is None:
            return
        if score > 0:
            self._make_evictable(chain, state)
            return
        while chain in self._chains:
            self._leave(chain)

    def settle(self, *, wait: bool = False) -> list[T]:
        """Return readers whose copies are complete. With `wait`, block until the oldest copy is complete."""
        ready = []
        while self._copies and (wait or self._copies[0].pending.done()):
            copy = self._copies.popleft()
            copy.pending.wait()
            wait = False
            if copy.reader is not None:
                ready.append(copy.reader)
        return ready

    def before_writing(self, pages: Iterable[int]) -> list[T]:
        """Wait until no copy reads or writes these pages. Return the readers that became ready meanwhile."""
        ready: list[T] = []
        if self._copies:
            written = set(pages)
            while any(copy.pages & written for copy in self._copies):
                ready += self.settle(wait=True)
        return ready

    def _take(self) -> int:
        while not self._free:
            self._leave(self._least())
        return self._free.pop()

    def _least(self) -> str:
        """Return the chain to evict from. Outdated queue entries are dropped, or queued again at their current position."""
        while True:
            score, used_at, chain = heapq.heappop(self._queue)
            state = self._chains.get(chain)
            if state is None:
                continue
            place = (self.scores.get(chain), state.used_at, chain)
            heapq.heappush(self._queue, place)
            if place <= (score, used_at, chain):
                return chain

    def _leave(self, chain: str) -> None:
        """Remove the chain from its first page, and evict that page if no other chain has it."""
        state = self._chains[chain]
        name, _ = state.page_hashes.popitem(last=False)
        if not state.page_hashes:
            del self._chains[chain]
        kept = self._kept[name]
        del kept.chains[chain]
        if not kept.chains:
            del self._kept[name]
            self._free.append(kept.slot)
            self._changes.note(name, stored=False)

    def _join(self, name: bytes, kept: _HostPage, chain: str) -> None:
        if chain in kept.chains:
            return
        if len(kept.chains) == MAX_CHAINS_PER_PAGE:
            self._forget(name, kept, next(iter(kept.chains)))
        kept.chains[chain] = None
        state = self._chains.get(chain)
        if state is None:
            self._now += 1
            state = self._chains[chain] = _Chain(used_at=self._now)
            self._make_evictable(chain, state)
        state.page_hashes[name] = None

    def _forget(self, name: bytes, kept: _HostPage, chain: str) -> None:
        del kept.chains[chain]
        state = self._chains[chain]
        del state.page_hashes[name]
        if not state.page_hashes:
            del self._chains[chain]

    def _make_evictable(self, chain: str, state: _Chain) -> None:
        heapq.heappush(self._queue, (self.scores.get(chain), state.used_at, chain))
        if len(self._queue) > 4 * len(self._chains) + 64:
            self._queue = [(self.scores.get(name), state.used_at, name) for name, state in self._chains.items()]
            heapq.heapify(self._queue)

    def check(self) -> None:
        slots = [*self._free, *(kept.slot for kept in self._kept.values())]
        assert sorted(slots) == list(range(self.num_slots)), "a slot is lost or used twice"
        pairs = {(name, chain) for name, kept in self._kept.items() for chain in kept.chains}
        assert pairs == {(name, chain) for chain, state in self._chains.items() for name in state.page_hashes}
        assert all(0 < len(kept.chains) <= MAX_CHAINS_PER_PAGE for kept in self._kept.values())
        assert all(state.page_hashes for state in self._chains.values())
        assert len(self._queue) <= 4 * len(self._chains) + 65
        assert self._chains.keys() <= {chain for _, _, chain in self._queue}
