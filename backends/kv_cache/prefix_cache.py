"""Prefix index: the resident full pages by page hash, and the order of their eviction.

Page hashes are chained (`wire.page_hashes`): equal hashes mean equal KV from the first token on, and pages form trees. A
sequence that references a page references all pages before it. All descendants of a page without a reference are therefore
without one too. So every cached page can be evicted, leaves first, and free + cached pages can be taken.
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
"""SUPERSEDED is the factor of the chain's score for pages that a new turn did not reuse. It applies if the new turn reuses at
least half of the previous turn's pages. With less overlap the pages keep their full score: side requests and sub-agents of a
session can use the same chain.
"""


class PageHasher:
    """Hashes pages one at a time as `wire.page_hashes` does all at once. The first `num_shared` pages use the shared salt."""

    def __init__(self, fingerprint: str, cache_salt: str, num_shared: int = 0) -> None:
        self._key, self._shared_key = page_key(fingerprint, cache_salt), page_key(fingerprint, SHARED_SALT)
        self._num_shared = num_shared

    def extend(self, parent: bytes, tokens: bytes, page: int) -> bytes:
        """Return the hash of page number `page` with `tokens` (uint32 little-endian) after `parent` (empty at the start)."""
        key = self._shared_key if page < self._num_shared else self._key
        return hashlib.blake2b(parent + tokens, digest_size=PAGE_HASH_BYTES, key=key).digest()


class CacheDelta:
    """Page hashes stored and removed since the last `take`."""

    def __init__(self) -> None:
        self._stored: dict[bytes, bool] = {}

    def note(self, name: bytes, *, stored: bool) -> None:
        if self._stored.get(name, stored) != stored:
            del self._stored[name]
        else:
            self._stored[name] = stored

    def take(self) -> tuple[list[bytes], list[bytes]]:
        """Return hashes stored and removed, without those that were both."""
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
    """For each chain, the number of its last turn that used the page."""


@dataclass(slots=True)
class _Turn:
    """The last turn of a chain."""

    number: int = 0
    num_pages: int = 0


class PrefixIndex:
    def __init__(self, pool: PagePool, scores: RetentionScores | None = None) -> None:
        """`scores` may be shared with the host cache."""
        self._pool = pool
        self._scores = RetentionScores() if scores is None else scores
        self._nodes: dict[bytes, _Node] = {}
        self._name_of: dict[int, bytes] = {}
        self._of_chain: dict[str, dict[bytes, None]] = {}
        self._turns: dict[str, _Turn] = {}
        """Last turns of the chains that have pages."""
        self._queue: list[tuple[float, int, bytes]] = []
        self._now = 0
        self._changes = CacheDelta()

    @property
    def available(self) -> int:
        """Return the number of pages that `take` can give: free pages and, by eviction, all cached ones."""
        return self._pool.num_free + self._pool.num_cached

    @property
    def num_free(self) -> int:
        """Return the number of pages that `take` can give without eviction."""
        return self._pool.num_free

    def page_hashes(self) -> list[bytes]:
        """Return the hashes of all resident pages, parents before children."""
        return list(self._nodes)

    def match(self, page_hashes: Sequence[bytes]) -> list[int]:
        """Return the pages of the longest resident prefix, without taking a reference."""
        pages = []
        for name in page_hashes:
            node = self._nodes.get(name)
            if node is None:
                break
            pages.append(node.page)
        return pages

    def cached_among(self, pages: Sequence[int]) -> int:
        """Return how many of these pages would leave `available` if referenced."""
        return sum(self._pool.num_holders(page) == 0 for page in pages)

    def num_own(self, pages: Sequence[int]) -> int:
        """Return how many of a sequence's pages would become available if the sequence released them."""
        return sum(self._pool.num_holders(page) == 1 for page in pages)

    def hold(self, pages: Sequence[int], chain: str) -> None:
        """Reference matched pages for a sequence of `chain`, and begin a new turn of the chain."""
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
        """Return fresh pages, with eviction as needed. Callers check `available` first."""
        assert count <= self.available, f"{count} pages requested, {self.available} are available"
        while self._pool.num_free < count:
            self._evict_one()
        return [self._pool.take() for _ in range(count)]

    def insert(self, name: bytes, parent: bytes, page: int, chain: str) -> int:
        """Index a used page that is full and computed. Return the page to continue with: a page resident under the same hash
        replaces `page`, which is given back.
        """
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
        """Release the pages of a sequence, in order of its tokens. Indexed pages stay cached."""
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
        """Set the score of a chain. Pages of lower scores are evicted first. At 0 they are evicted now, or when their last
        sequence ends.
        """
        previous = self._scores.put(chain, score)
        if score >= previous:  # an entry that is too early in the queue is corrected when popped
            return
        for name in reversed(list(self._of_chain.get(chain, ()))):
            if name in self._nodes:
                self._make_evictable(name)

    def revive(self, chain: str) -> None:
        """Restore the default score of a released chain that is in use again."""
        self._scores.revive(chain)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Return hashes stored and removed since the last call, without those that were both."""
        return self._changes.take()

    def _supersede(self, chain: str, pages: Sequence[int]) -> int | None:
        """Begin a turn of the chain. Return the number of the previous turn if the new one continues it."""
        turn = self._turns.get(chain)
        if turn is None or not chain:
            return None
        before = turn.number
        num_shared = sum(self._nodes[self._name_of[page]].chains.get(chain) == before for page in pages)
        goes_on = num_shared > 0 and 2 * num_shared >= turn.num_pages
        turn.number, turn.num_pages = before + 1, 0
        return before if goes_on else None

    def _leave_behind(self, chain: str, before: int) -> None:
        """Lower the score of the pages of turn `before` that the new turn did not reuse."""
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
        """Queue a page for eviction if it is a leaf without a reference. At score 0 evict it now and go on with its parent."""
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
        """Evict one page. Outdated queue entries are dropped, or queued again with their current score."""
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
        """Evict a page. Return its parent, which may have become a leaf."""
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
                assert parents >= mine, "a page is referenced without its parent"
        queued = {(used_at, name) for _, used_at, name in self._queue}
        for name, node in self._nodes.items():
            assert node.num_children == children[name]
            if self._is_evictable(node):
                assert (node.used_at, name) in queued, "an evictable page is not queued"
        assert self._turns.keys() == self._of_chain.keys()
        assert len(self._name_of) == len(self._nodes)
        assert self._pool.num_cached == sum(self._pool.num_holders(node.page) == 0 for node in self._nodes.values())
