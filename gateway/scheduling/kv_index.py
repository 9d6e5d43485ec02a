"""Index of the KV pages on each worker, built from the workers' cache frames in order. Bounded.

stored/removed/reset ──▶ apply ──▶ pages[worker][name] = sequence of the frame that stored it

A gap in the sequence drops the entries of that worker until its next reset: missing entries are safe, wrong ones are not.
When the index is full, the largest worker is thinned: every second of its page hashes is kept, selected by the hash itself.
The cached length of a prompt is then exact to a few pages. A worker with a page has all pages before it, so lengths are
found by bisection.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from msgspec import structs

from backends.wire import Cache, split_hashes


class KvIndex:
    """An index of page hashes by worker. `max_pages` bounds all workers together."""

    def __init__(self, max_pages: int) -> None:
        self._max_pages = max_pages
        self._num_pages = 0
        self._pages: dict[str, dict[bytes, int]] = {}
        self._sequence: dict[str, int] = {}
        self._holders: dict[bytes, str | set[str]] = {}
        self._sparse: dict[str, int] = {}
        """By thinned worker: one hash in so many is kept. A power of two."""

    def __len__(self) -> int:
        return self._num_pages

    def sequence(self, worker: str) -> int:
        """Return the sequence of the last applied frame, for `repair(since=...)`. -1 without any."""
        return self._sequence.get(worker, -1)

    def num_pages(self, worker: str) -> int:
        return len(self._pages.get(worker, ()))

    def apply(self, worker: str, cache: Cache) -> bool:
        """Apply a frame. Return False after a gap: the worker then has no entries until a frame with `reset`."""
        if cache.reset:
            self.forget(worker)
        elif worker not in self._sequence:
            if cache.sequence > 1:
                return False
        elif cache.sequence != self._sequence[worker] + 1:
            self.forget(worker)
            return False
        pages = self._pages.setdefault(worker, {})
        self._sequence[worker] = cache.sequence
        for name in split_hashes(cache.removed):
            if pages.pop(name, None) is not None:
                self._no_holder(name, worker)
        self._store(worker, split_hashes(cache.stored), cache.sequence)
        return True

    def cached_tokens(self, worker: str, page_hashes: Sequence[bytes], page_size: int) -> int:
        """Return the number of leading tokens of a prompt that are resident. `page_hashes` are those of its full pages."""
        pages = self._pages.get(worker)
        if not pages:
            return 0
        return _deepest(page_hashes, self._sparse.get(worker, 1), pages.__contains__) * page_size

    def holders(self, page_hashes: Sequence[bytes], most: int = 16) -> dict[str, int]:
        """Return the workers with the longest resident prefix, and its length in pages. A worker may be missing if `most`
        others have more pages."""
        pages_by_worker: dict[str, int] = {}
        sparse, high = max(self._sparse.values(), default=1), len(page_hashes)
        holds: Callable[[bytes], bool] = self._holders.__contains__
        while len(pages_by_worker) < most:
            depth = _deepest(page_hashes, sparse, holds, high)
            if depth == 0:
                break
            holders = self._holders[page_hashes[depth - 1]]
            for worker in (holders,) if isinstance(holders, str) else holders:
                pages_by_worker.setdefault(worker, depth)
            high, holds = depth - 1, lambda name: self._num_holders(name) > len(pages_by_worker)
        return pages_by_worker

    def repair(
        self, worker: str, page_hashes: Sequence[bytes], cached: int, *, page_size: int = 16, since: int | None = None
    ) -> None:
        """Correct the index by a `Finished.num_cached_tokens`, which is exact at the time of the request's admission.

        The first `cached` tokens were resident. `since` is the sequence at submission: later pages that were indexed by
        then, and not stored again after, are removed.
        """
        pages = self._pages.get(worker)
        if pages is None:
            return
        resident = cached // page_size
        known = self.cached_tokens(worker, page_hashes[:resident], 1)
        self._store(worker, page_hashes[known:resident], self._sequence[worker])
        if since is not None:
            self.deny(worker, page_hashes[resident:], since)

    def deny(self, worker: str, page_hashes: Sequence[bytes], since: int) -> None:
        """Remove pages that were missing at submission, unless a frame after `since` stored them."""
        pages = self._pages.get(worker, {})
        for name in page_hashes:
            if pages.get(name, since + 1) <= since:
                del pages[name]
                self._no_holder(name, worker)

    def forget(self, worker: str) -> None:
        """Drop all entries of a worker that is gone, or whose next frame is a reset."""
        for name in self._pages.pop(worker, ()):
            self._no_holder(name, worker)
        self._sequence.pop(worker, None)
        self._sparse.pop(worker, None)

    def _store(self, worker: str, page_hashes: Sequence[bytes], sequence: int) -> None:
        pages, sparse = self._pages[worker], self._sparse.get(worker, 1)
        for name in page_hashes:
            if sparse == 1 or _is_kept(name, sparse):
                if name not in pages:
                    self._a_holder(name, worker)
                pages[name] = sequence
        while self._num_pages > self._max_pages:
            self._thin(max(self._pages, key=lambda each: len(self._pages[each])))

    def _thin(self, worker: str) -> None:
        sparse = self._sparse[worker] = 2 * self._sparse.get(worker, 1)
        pages = self._pages[worker]
        self._pages[worker] = {
            name: stored for name, stored in pages.items() if _is_kept(name, sparse)
        }  # a new dict, as a dict never shrinks
        for name in pages.keys() - self._pages[worker].keys():
            self._no_holder(name, worker)

    def _num_holders(self, name: bytes) -> int:
        holders = self._holders.get(name)
        return len(holders) if isinstance(holders, set) else int(holders is not None)

    def _a_holder(self, name: bytes, worker: str) -> None:
        holders = self._holders.get(name)
        if holders is None:
            self._holders[name] = worker
        elif isinstance(holders, set):
            holders.add(worker)
        else:
            self._holders[name] = {holders, worker}
        self._num_pages += 1

    def _no_holder(self, name: bytes, worker: str) -> None:
        holders = self._holders[name]
        if isinstance(holders, set) and len(holders) > 1:
            holders.discard(worker)
        else:
            del self._holders[name]
        self._num_pages -= 1

    def check(self) -> None:
        """Assert the invariants. For tests."""
        assert self._num_pages == sum(map(len, self._pages.values())) <= self._max_pages
        assert self._pages.keys() == self._sequence.keys()
        entries = {(name, worker) for worker, pages in self._pages.items() for name in pages}
        sets = ((name, {holders} if isinstance(holders, str) else holders) for name, holders in self._holders.items())
        assert entries == {(name, worker) for name, workers in sets for worker in workers}
        assert all(_is_kept(name, self._sparse.get(worker, 1)) for name, worker in entries)


def of_host(cache: Cache) -> Cache:
    """Return the same frame for an index of host caches."""
    return structs.replace(cache, stored=cache.host_stored, removed=cache.host_removed)


def reload_credit(tokens: int, *, reload_s_per_token: float, prefill_s_per_token: float) -> int:
    """Return the number of cached tokens that `tokens` in the host cache count as: all but their reload time."""
    if prefill_s_per_token <= 0:
        return 0
    return int(tokens * max(0.0, 1.0 - reload_s_per_token / prefill_s_per_token))


def _is_kept(name: bytes, sparse: int) -> bool:
    return int.from_bytes(name[-2:]) & (sparse - 1) == 0


def _deepest(page_hashes: Sequence[bytes], sparse: int, holds: Callable[[bytes], bool], high: int | None = None) -> int:
    """Return the number of leading pages for which `holds`, as far as kept hashes show. `holds` must be true for a prefix
    of the hashes, and false from `high` on."""
    low, high = 0, len(page_hashes) if high is None else high  # all before `low` are held, none from `high` on
    if sparse == 1:
        if high == 0 or not holds(page_hashes[0]):
            return 0
        return bisect_left(page_hashes, True, 1, high, key=lambda name: not holds(name))
    while low < high:
        middle = at = (low + high) // 2
        while at < high and not _is_kept(page_hashes[at], sparse):
            at += 1
        if at == high:
            high = middle
        elif holds(page_hashes[at]):
            low = at + 1
        else:
            high = middle
    return low
