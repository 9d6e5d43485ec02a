"""Which pages are where: what each worker said it holds, in the order it said so. Bounded; forgets the oldest first.

stored/removed/reset ──▶ apply ──▶ pages[worker][name] = sequence of the frame that stored it
a gap in the sequence drops what is known of that worker until its next reset: to know less is safe, to know wrong is not
"""

from collections.abc import Sequence

from backends.wire import Cache, split_names


class Residency:
    """An index of page names per worker; `max_pages` bounds all workers together."""

    def __init__(self, max_pages: int) -> None:
        self._max_pages = max_pages
        self._num_pages = 0
        self._pages: dict[str, dict[bytes, int]] = {}
        self._sequence: dict[str, int] = {}

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
        for name in split_names(cache.removed):
            if pages.pop(name, None) is not None:
                self._num_pages -= 1
        self._store(pages, split_names(cache.stored), cache.sequence)
        return True

    def cached_tokens(self, worker: str, names: Sequence[bytes], page_size: int) -> int:
        """Leading tokens of a prompt that are resident; `names` are those of its full pages (wire.page_names)."""
        pages = self._pages.get(worker)
        if not pages:
            return 0
        count = 0
        for name in names:
            if name not in pages:
                break
            count += 1
        return count * page_size

    def repair(
        self, worker: str, names: Sequence[bytes], cached: int, *, page_size: int = 16, since: int | None = None
    ) -> None:
        """Corrects the index with a `Finished.num_cached_tokens`, the truth at the time when the request was admitted.

        The first `cached` tokens were resident. With `since`, the sequence at submission, later pages that the index
        claimed even then, and that were not stored anew, are taken out.
        """
        pages = self._pages.get(worker)
        if pages is None:
            return
        resident = cached // page_size
        self._store(pages, names[:resident], self._sequence[worker])
        if since is None:
            return
        for name in names[resident:]:
            if pages.get(name, since + 1) <= since:
                del pages[name]
                self._num_pages -= 1

    def forget(self, worker: str) -> None:
        """The worker is gone, or its next frame is a reset."""
        self._num_pages -= len(self._pages.pop(worker, ()))
        self._sequence.pop(worker, None)

    def _store(self, pages: dict[bytes, int], names: Sequence[bytes], sequence: int) -> None:
        before = len(pages)
        for name in names:
            pages.pop(name, None)  # to the end: most recently confirmed
            pages[name] = sequence
        self._num_pages += len(pages) - before
        while self._num_pages > self._max_pages:
            largest = max(self._pages.values(), key=len)
            for name in list(largest)[: max(1, self._num_pages - self._max_pages)]:
                del largest[name]
                self._num_pages -= 1

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert self._num_pages == sum(map(len, self._pages.values())) <= self._max_pages
        assert self._pages.keys() == self._sequence.keys()
