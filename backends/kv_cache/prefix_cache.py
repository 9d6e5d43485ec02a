"""The prefix index: which full pages are resident under which name, and which of them to give up first.

Names are chained (`wire.page_hashes`), so equal names mean equal KV from the first token on, and the pages form trees.
Whoever holds a page holds all before it: a page that nobody holds has only descendants that nobody holds, so every
cached page can be evicted, leaves first, and free + cached is what can be taken.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.kv_cache.page_pool import PagePool
from backends.kv_cache.retention_scores import RetentionScores
from backends.wire import PAGE_HASH_BYTES, SHARED_SALT, page_key

MAX_CHAINS_PER_PAGE = 4
SUPERSEDED, LEFT_BEHIND = 0.05, -1
"""Where a turn goes on with half of the turn before or more, what it did not take up counts by this part of the chain's
score. Where it shares less nothing is said: side requests and sub-agents of a session may come under its name."""


class PageHasher:
    """Names pages one after the other as `wire.page_hashes` does all at once; the first `num_shared` for everybody."""

    def __init__(self, fingerprint: str, cache_salt: str, num_shared: int = 0) -> None:
        self._key, self._shared_key = page_key(fingerprint, cache_salt), page_key(fingerprint, SHARED_SALT)
        self._num_shared = num_shared

    def extend(self, parent: bytes, tokens: bytes, page: int) -> bytes:
        """The name of page number `page`, of `tokens` (uint32 little-endian), behind `parent` (empty: at the start)."""
        key = self._shared_key if page < self._num_shared else self._key
        return hashlib.blake2b(parent + tokens, digest_size=PAGE_HASH_BYTES, key=key).digest()


class CacheDelta:
    """Names that were stored and removed since the last look."""

    def __init__(self) -> None:
        self._stored: dict[bytes, bool] = {}

    def note(self, name: bytes, *, stored: bool) -> None:
        if self._stored.get(name, stored) != stored:
            del self._stored[name]
        else:
            self._stored[name] = stored

    def take(self) -> tuple[list[bytes], list[bytes]]:
        """Names stored and removed; what did both in between is in neither."""
        stored = [name for name, is_stored in self._stored.items() if is_stored]
        removed = [name for name, is_stored in self._stored.items() if not is_stored]
        self._stored.clear()
        return stored, removed


@dataclass(slots=True)
class _Node:
    page: int
    parent: bytes
    used_at: int
    num_children: int = 0
    chains: dict[str, int] = field(default_factory=dict)
    """With the number of the last turn of each that had it."""


@dataclass(slots=True)
class _Turn:
    """The last one of a chain."""

    number: int = 0
    num_pages: int = 0


class PrefixIndex:
    def __init__(self, pool: PagePool, scores: RetentionScores | None = None) -> None:
        """`scores` may be shared with the host tier."""
        self._pool = pool
        self._scores = RetentionScores() if scores is None else scores
        self._nodes: dict[bytes, _Node] = {}
        self._name_of: dict[int, bytes] = {}
        self._of_chain: dict[str, dict[bytes, None]] = {}
        self._turns: dict[str, _Turn] = {}
        """Of the chains that have pages."""
        self._queue: list[tuple[float, int, bytes]] = []
        self._now = 0
        self._changes = CacheDelta()

    @property
    def available(self) -> int:
        """Pages that `take` can give: free ones and, by evicting, all cached ones."""
        return self._pool.num_free + self._pool.num_cached

    @property
    def num_free(self) -> int:
        """Pages that `take` can give without evicting."""
        return self._pool.num_free

    def page_hashes(self) -> list[bytes]:
        """Everything resident, parents before children."""
        return list(self._nodes)

    def match(self, page_hashes: Sequence[bytes]) -> list[int]:
        """Pages of the longest resident prefix. Holds nothing."""
        pages = []
        for name in page_hashes:
            node = self._nodes.get(name)
            if node is None:
                break
            pages.append(node.page)
        return pages

    def cached_among(self, pages: Sequence[int]) -> int:
        """How many of these would leave `available` when held."""
        return sum(self._pool.num_holders(page) == 0 for page in pages)

    def num_own(self, pages: Sequence[int]) -> int:
        """How many of a sequence's pages would become available if it let go of them."""
        return sum(self._pool.num_holders(page) == 1 for page in pages)

    def hold(self, pages: Sequence[int], chain: str) -> None:
        """Holds matched pages for a sequence of `chain`, which begins a turn of it."""
        self._now += 1
        left = self._supersede(chain, pages)
        for page in pages:
            self._pool.hold(page)
            name = self._name_of[page]
            node = self._nodes[name]
            node.used_at = self._now
            self._join(name, node, chain)
        if left is not None and len(self._of_chain[chain]) > len(pages):
            self._leave_behind(chain, left)

    def take(self, count: int) -> list[int]:
        """Fresh pages, evicting as needed. Callers ask `available` first."""
        assert count <= self.available, f"{count} pages asked for, {self.available} are available"
        while self._pool.num_free < count:
            self._evict_one()
        return [self._pool.take() for _ in range(count)]

    def insert(self, name: bytes, parent: bytes, page: int, chain: str) -> int:
        """A held page has become full and computed. Returns the page to go on with: one that was resident under the same
        name takes its place, and it is given back."""
        there = self._nodes.get(name)
        if there is not None:
            if there.page != page:
                self._pool.hold(there.page)
                self._pool.give_back(page, keep=False)
            self._join(name, there, chain)
            return there.page
        self._nodes[name] = node = _Node(page, parent, self._now)
        self._name_of[page] = name
        if parent:
            self._nodes[parent].num_children += 1
        self._join(name, node, chain)
        self._changes.note(name, stored=True)
        return page

    def give_back(self, pages: Sequence[int]) -> None:
        """A sequence lets go of its pages, in order of its tokens; what is indexed stays cached."""
        self._now += 1
        for page in reversed(pages):
            name = self._name_of.get(page)
            last = self._pool.give_back(page, keep=name is not None)
            if name is None:
                continue
            node = self._nodes[name]
            node.used_at = self._now
            if last:
                self._make_evictable(name)

    def set_retention(self, chain: str, score: float) -> None:
        """Pages of chains with lower scores go first; at 0 they go now, or when their last sequence ends."""
        before = self._scores.put(chain, score)
        if score >= before:  # a place in the queue that is too early is found out when it comes up
            return
        for name in reversed(list(self._of_chain.get(chain, ()))):
            if name in self._nodes:
                self._make_evictable(name)

    def revive(self, chain: str) -> None:
        """A released chain has come back."""
        self._scores.revive(chain)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Names stored and removed since the last call; what did both in between is in neither."""
        return self._changes.take()

    def _supersede(self, chain: str, pages: Sequence[int]) -> int | None:
        """Returns the number of the turn before, where the new one goes on with it."""
        turn = self._turns.get(chain)
        if turn is None or not chain:
            return None
        before = turn.number
        num_shared = sum(self._nodes[self._name_of[page]].chains.get(chain) == before for page in pages)
        goes_on = num_shared > 0 and 2 * num_shared >= turn.num_pages
        turn.number, turn.num_pages = before + 1, 0
        return before if goes_on else None

    def _leave_behind(self, chain: str, before: int) -> None:
        """Pages of turn `before` that the new one did not take up are worth less than the queue says."""
        for name in reversed(list(self._of_chain[chain])):
            node = self._nodes.get(name)
            if node is not None and node.chains[chain] == before:
                node.chains[chain] = LEFT_BEHIND
                self._make_evictable(name)

    def _join(self, name: bytes, node: _Node, chain: str) -> None:
        if chain not in node.chains and len(node.chains) == MAX_CHAINS_PER_PAGE:
            self._leave(name, node, next(iter(node.chains)))
        turn = self._turns.setdefault(chain, _Turn())
        if node.chains.get(chain) == turn.number:
            return
        node.chains[chain] = turn.number
        turn.num_pages += 1
        self._of_chain.setdefault(chain, {})[name] = None

    def _leave(self, name: bytes, node: _Node, chain: str) -> None:
        del node.chains[chain]
        page_hashes = self._of_chain[chain]
        del page_hashes[name]
        if not page_hashes:
            del self._of_chain[chain], self._turns[chain]

    def _score(self, node: _Node) -> float:
        return max(map(self._worth, node.chains, node.chains.values()))

    def _worth(self, chain: str, turn: int) -> float:
        return self._scores.get(chain) * (SUPERSEDED if turn == LEFT_BEHIND else 1.0)

    def _is_evictable(self, node: _Node) -> bool:
        return node.num_children == 0 and self._pool.num_holders(node.page) == 0

    def _make_evictable(self, name: bytes) -> None:
        """Queues a page for eviction if it is a leaf that nobody holds; with score 0 it goes now, and its parent is next."""
        while name:
            node = self._nodes[name]
            if not self._is_evictable(node):
                return
            score = self._score(node)
            if score > 0:
                heapq.heappush(self._queue, (score, node.used_at, name))
                break
            name = self._evict(name, node)
        if len(self._queue) > 4 * len(self._nodes) + 64:
            self._requeue()

    def _requeue(self) -> None:
        leaves = ((name, node) for name, node in self._nodes.items() if self._is_evictable(node))
        self._queue = [(self._score(node), node.used_at, name) for name, node in leaves]
        heapq.heapify(self._queue)

    def _evict_one(self) -> None:
        """The queue may hold entries that time has overtaken: they are dropped, or queued again under their true score."""
        while True:
            score, used_at, name = heapq.heappop(self._queue)
            node = self._nodes.get(name)
            if node is None or node.used_at != used_at or not self._is_evictable(node):
                continue
            if self._score(node) > score:
                self._make_evictable(name)
                continue
            self._make_evictable(self._evict(name, node))
            return

    def _evict(self, name: bytes, node: _Node) -> bytes:
        """Returns the parent, which may have become a leaf."""
        for chain in list(node.chains):
            self._leave(name, node, chain)
        del self._nodes[name], self._name_of[node.page]
        self._pool.forget(node.page)
        self._changes.note(name, stored=False)
        if node.parent:
            self._nodes[node.parent].num_children -= 1
        return node.parent

    def check(self) -> None:
        self._pool.check()
        children = dict.fromkeys(self._nodes, 0)
        for name, node in self._nodes.items():
            assert self._name_of[node.page] == name
            assert node.chains and all(name in self._of_chain[chain] for chain in node.chains)
            if node.parent:
                children[node.parent] += 1
                mine, parents = (self._pool.num_holders(n.page) for n in (node, self._nodes[node.parent]))
                assert parents >= mine, "a page is held without the page before it"
        queued = {(used_at, name) for _, used_at, name in self._queue}
        for name, node in self._nodes.items():
            assert node.num_children == children[name]
            if self._is_evictable(node):
                assert (node.used_at, name) in queued, "an evictable page is not queued"
        assert self._turns.keys() == self._of_chain.keys()
        assert len(self._name_of) == len(self._nodes)
        assert self._pool.num_cached == sum(self._pool.num_holders(node.page) == 0 for node in self._nodes.values())
