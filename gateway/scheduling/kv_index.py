"""Which pages are where: what each worker said it holds, in the order it said so. Bounded.

stored/removed/reset ──▶ apply ──▶ pages[worker][name] = sequence of the frame that stored it
a gap in the sequence drops what is known of that worker until its next reset: to know less is safe, to know wrong is not
when it is full, the largest worker is thinned: of its names only every second one is kept, chosen by the name itself, so
that what a worker holds of a prompt is known to a few pages. Whoever holds a page holds all before it: lengths are bisected.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from msgspec import structs

from backends.wire import Cache, split_hashes


class KvIndex:
    """An index of page names per worker; `max_pages` bounds all workers together."""

    def __init__(self, max_pages: int) -> None:
        self._max_pages = max_pages
        self._num_pages = 0
        self._pages: dict[str, dict[bytes, int]] = {}
        self._sequence: dict[str, int] = {}
        self._holders: dict[bytes, str | set[str]] = {}
        self._sparse: dict[str, int] = {}
        """Of the workers that were thinned: one name in so many is kept, a power of two."""

    def __len__(self) -> int:
        return self._num_pages

    def sequence(self, worker: str) -> int:
        """Of the last frame taken in, for `repair(since=...)`; -1 when nothing is known."""
        return self._sequence.get(worker, -1)

    def num_pages(self, worker: str) -> int:
        return len(self._pages.get(worker, ()))

    def apply(self, worker: str, cache: Cache) -> bool:
        """Takes frames in order. False after a gap: nothing is known of the worker until a frame with `reset`."""
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
        """Leading tokens of a prompt that are resident; `names` are those of its full pages (wire.page_names)."""
        pages = self._pages.get(worker)
        if not pages:
            return 0
        return _deepest(page_hashes, self._sparse.get(worker, 1), pages.__contains__) * page_size

    def holders(self, page_hashes: Sequence[bytes], most: int = 16) -> dict[str, int]:
        """The workers that hold most of a prompt, and how many of its leading pages. Those that hold less than `most`
        others do may be left out."""
        found: dict[str, int] = {}
        sparse, high = max(self._sparse.values(), default=1), len(page_hashes)
        holds: Callable[[bytes], bool] = self._holders.__contains__
        while len(found) < most:
            depth = _deepest(page_hashes, sparse, holds, high)
            if depth == 0:
                break
            holders = self._holders[page_hashes[depth - 1]]
            for worker in (holders,) if isinstance(holders, str) else holders:
                found.setdefault(worker, depth)
            high, holds = depth - 1, lambda name: self._num_holders(name) > len(found)
        return found

    def repair(
        self, worker: str, page_hashes: Sequence[bytes], cached: int, *, page_size: int = 16, since: int | None = None
    ) -> None:
        """Corrects the index with a `Finished.num_cached_tokens`, the truth at the time when the request was admitted.

        The first `cached` tokens were resident. With `since`, the sequence at submission, later pages that the index
        claimed even then, and that were not stored anew, are taken out.
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
        """These were not there at submission: what was claimed even then is taken out."""
        pages = self._pages.get(worker, {})
        for name in page_hashes:
            if pages.get(name, since + 1) <= since:
                del pages[name]
                self._no_holder(name, worker)

    def forget(self, worker: str) -> None:
        """The worker is gone, or its next frame is a reset."""
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
        self._pages[worker] = {name: stored for name, stored in pages.items() if _is_kept(name, sparse)}  # a smaller table
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
        """Asserts the invariants; for tests."""
        assert self._num_pages == sum(map(len, self._pages.values())) <= self._max_pages
        assert self._pages.keys() == self._sequence.keys()
        held = {(name, worker) for worker, pages in self._pages.items() for name in pages}
        sets = ((name, {one} if isinstance(one, str) else one) for name, one in self._holders.items())
        assert held == {(name, worker) for name, workers in sets for worker in workers}
        assert all(_is_kept(name, self._sparse.get(worker, 1)) for name, worker in held)


def of_host(cache: Cache) -> Cache:
    """The same frame as an index of host tiers takes it."""
    return structs.replace(cache, stored=cache.host_stored, removed=cache.host_removed)


def reload_credit(tokens: int, *, reload_s_per_token: float, prefill_s_per_token: float) -> int:
    """As how many cached tokens those of the host tier count: all but the time that their reload takes."""
    if prefill_s_per_token <= 0:
        return 0
    return int(tokens * max(0.0, 1.0 - reload_s_per_token / prefill_s_per_token))


def _is_kept(name: bytes, sparse: int) -> bool:
    return int.from_bytes(name[-2:]) & (sparse - 1) == 0


def _deepest(page_hashes: Sequence[bytes], sparse: int, holds: Callable[[bytes], bool], high: int | None = None) -> int:
    """How many leading pages are held, as far as kept names tell. `holds` is true of some first names and of none behind,
    nor of any from `high` on."""
    low, high = 0, len(page_hashes) if high is None else high  # names before `low` are held; none from `high` on is
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
