"""The page pool: who uses which page of KV. No torch, no names: only counts.

A page is free, used (one or more sequences hold it) or cached (nobody holds it, its contents are worth keeping):
free + used + cached = all, always.
"""

import heapq


class PagePool:
    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_cached = 0
        self._holders = [0] * num_pages
        self._cached = [False] * num_pages
        self._free = list(range(num_pages))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free - self.num_cached

    def take(self) -> int:
        """A free page, held once: the lowest, so that a sequence's pages tend to be neighbours."""
        page = heapq.heappop(self._free)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One holder more, of a used or a cached page."""
        assert self._holders[page] or self._cached[page], f"page {page} is free"
        if self._cached[page]:
            self._cached[page] = False
            self.num_cached -= 1
        self._holders[page] += 1

    def give_back(self, page: int, *, keep: bool) -> bool:
        """One holder less. True if it was the last: then the page is cached if `keep`, else free."""
        assert self._holders[page], f"page {page} is held by nobody"
        self._holders[page] -= 1
        if self._holders[page]:
            return False
        if keep:
            self._cached[page] = True
            self.num_cached += 1
        else:
            heapq.heappush(self._free, page)
        return True

    def forget(self, page: int) -> None:
        """Cached to free."""
        assert self._cached[page], f"page {page} is not cached"
        self._cached[page] = False
        self.num_cached -= 1
        heapq.heappush(self._free, page)

    def num_holders(self, page: int) -> int:
        return self._holders[page]

    def check(self) -> None:
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert self.num_cached == sum(self._cached)
        for page in range(self.num_pages):
            states = (page in free) + (self._holders[page] > 0) + self._cached[page]
            assert states == 1, f"page {page} has {states} states"
