"""Sequences and uncached tokens that may still be submitted to one worker. Pure.

A `Load` does not include submits that were in flight when it was made. Their number is the live requests less the worker's
running and waiting ones; they are the last submitted.
"""

from collections import Counter

from backends.wire import Load


class Credits:
    """Credits of one worker. `live` maps unfinished requests to their uncached prompt tokens, in order of submission. `taken`
    counts them by tenant. `prefilling` maps those without a first token to their priority; lower runs first."""

    def __init__(self) -> None:
        self.sequences = 0
        self.tokens = 0
        self.live: dict[int, int] = {}
        self.taken = Counter[str]()
        self.prefilling: dict[int, int] = {}
        self._tenants: dict[int, str] = {}
        self._unseen: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return self.sequences - len(self._unseen)

    @property
    def tokens_in_flight(self) -> int:
        """Return the uncached tokens that the worker's last report does not include."""
        return sum(self._unseen.values())

    def has_capacity(self, uncached_tokens: int, priority: int = 0) -> bool:
        """Return whether a prompt may be submitted now. An idle worker accepts any length. A busy one accepts what its token
        credits cover, or a prompt that it would prefill before its whole backlog: that costs no routing freedom."""
        if self.num_free < 1:
            return False
        if not self.live or uncached_tokens <= self.tokens - self.tokens_in_flight:
            return True
        return priority < min(self.prefilling.values(), default=-1)

    def submit(self, request: int, uncached_tokens: int, tenant: str = "", priority: int = 0) -> None:
        self.live[request] = uncached_tokens
        self._tenants[request] = tenant
        self.taken[tenant] += 1
        self._unseen[request] = uncached_tokens
        self.prefilling[request] = priority

    def prefilled(self, request: int) -> None:
        """Record that the request's first token arrived."""
        self.prefilling.pop(request, None)

    def finish(self, request: int) -> None:
        if self.live.pop(request, None) is not None:
            tenant = self._tenants.pop(request)
            self.taken[tenant] -= 1
            if not self.taken[tenant]:
                del self.taken[tenant]
        self._unseen.pop(request, None)
        self.prefilling.pop(request, None)

    def grant(self, load: Load) -> None:
        self.sequences = load.credit_sequences
        self.tokens = load.credit_tokens
        num_unseen = max(0, len(self.live) - load.running - load.waiting)
        if num_unseen == 0:
            self._unseen.clear()
            return
        self._unseen = dict(list(self.live.items())[-num_unseen:])

    def forget(self) -> None:
        """Reset after the connection is lost: no credits, nothing live."""
        self.sequences = self.tokens = 0
        for waste in (self.live, self._unseen, self._tenants, self.taken, self.prefilling):
            waste.clear()
