"""How much may still be submitted to one worker. Pure.

A `Load` does not know of submits that were on their way when it was made: they are those beyond the worker's own count of
running and waiting, and the last in order.
"""

from collections import Counter

from backends.wire import Load


class Credits:
    """`live` maps each request submitted and not finished to its uncached prompt tokens, in order of submission; `taken` counts
    them by tenant; `unread` are those without a first token, by priority, of which the lower are read first."""

    def __init__(self) -> None:
        self.sequences = 0
        self.tokens = 0
        self.live: dict[int, int] = {}
        self.taken = Counter[str]()
        self.unread: dict[int, int] = {}
        self._tenants: dict[int, str] = {}
        self._unseen: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return self.sequences - len(self._unseen)

    @property
    def tokens_in_flight(self) -> int:
        """Uncached tokens submitted since the worker last reported."""
        return sum(self._unseen.values())

    def has_capacity(self, uncached_tokens: int, priority: int = 0) -> bool:
        """An idle worker takes a prompt of any length that fits its context; a busy one what its credits cover, or what it
        would read before all that it has yet to read: that is bound no earlier than it runs."""
        if self.num_free < 1:
            return False
        if not self.live or uncached_tokens <= self.tokens - self.tokens_in_flight:
            return True
        return priority < min(self.unread.values(), default=-1)

    def submit(self, request: int, uncached_tokens: int, tenant: str = "", priority: int = 0) -> None:
        self.live[request] = uncached_tokens
        self._tenants[request] = tenant
        self.taken[tenant] += 1
        self._unseen[request] = uncached_tokens
        self.unread[request] = priority

    def prefilled(self, request: int) -> None:
        """Its first token came."""
        self.unread.pop(request, None)

    def finish(self, request: int) -> None:
        if self.live.pop(request, None) is not None:
            tenant = self._tenants.pop(request)
            self.taken[tenant] -= 1
            if not self.taken[tenant]:
                del self.taken[tenant]
        self._unseen.pop(request, None)
        self.unread.pop(request, None)

    def grant(self, load: Load) -> None:
        self.sequences = load.credit_sequences
        self.tokens = load.credit_tokens
        num_unseen = max(0, len(self.live) - load.running - load.waiting)
        if num_unseen == 0:
            self._unseen.clear()
            return
        self._unseen = dict(list(self.live.items())[-num_unseen:])

    def forget(self) -> None:
        """The link is gone: nothing may be submitted, nothing is live."""
        self.sequences = self.tokens = 0
        for waste in (self.live, self._unseen, self._tenants, self.taken, self.unread):
            waste.clear()
