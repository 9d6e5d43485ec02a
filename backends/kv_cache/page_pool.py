"""Reference counts of KV pages. No torch and no page hashes.

A page is free, used (referenced by one or more sequences) or cached (no reference, contents worth keeping). Always free + used
+ cached = all.
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
        """Take the lowest free page with one reference. Low numbers first keep a sequence's pages close together."""
        page = heapq.heappop(self._free)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Add a reference to a used or a cached page."""
        assert self._holders[page] or self._cached[page], f"page {page} is free"
        if self._cached[page]:
            self._cached[page] = False
            self.num_cached -= 1
        self._holders[page] += 1

    def give_back(self, page: int, *, keep: bool) -> bool:
        """Drop a reference. Return True if it was the last: the page is then cached if `keep`, else free."""
        assert self._holders[page], f"page {page} has no reference"
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
        """Turn a cached page into a free one."""
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
