"""Sends retention scores of chains to workers when they changed enough to affect eviction order. Bounded.

a turn arrives   1: its pages stay until it runs
it ends          P(return within H), falling as the pause goes on
"""

from collections import OrderedDict
from collections.abc import Callable

from gateway.runs.registry import Chain, Run
from gateway.scheduling.retention import LEAST, WITHIN_S, Retention

MAX_PUBLISHED = 20_000
REFRESHED_CHAINS = 1_000
"""Paused chains scored by one refresh, which takes a few milliseconds; the others follow in the next."""
_CHANGED = 0.75
"""Factor by which a score must fall to be sent again."""
_SETTLED = 0.02
"""Score below which a chain is no longer refreshed: all other pages are evicted later anyway."""

SendRetention = Callable[[str, str, float], None]


class RetentionPublisher:
    """Publisher of retention scores. `retain` takes a worker, a chain and a score; `within_s` returns a worker's H in
    seconds."""

    def __init__(
        self, retention: Retention, retain: SendRetention, within_s: Callable[[str], float] = lambda _: WITHIN_S
    ) -> None:
        self.retention = retention
        self._retain, self._within_s = retain, within_s
        self._published: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._published)

    def arrived(self, chain: Chain, now: float) -> None:
        """Raise a chain's score to 1 while its turn waits and runs."""
        self.retention.turn_arrived(chain.name, now)
        worker, score = self._published.pop(chain.name, (chain.warm_worker, 0.0))
        if worker is not None and score < 1.0:
            self._retain(worker, chain.name, 1.0)

    def finished(self, chain: Chain, now: float, *, finish: str, tool: str, keep_s: float = 0.0) -> None:
        """Publish the score of a chain whose turn was answered. `keep_s` is the time that the caller asked for."""
        self.retention.turn_finished(chain.name, now, finish=finish, tool=tool, keep_s=keep_s)
        if chain.warm_worker is not None:
            self._publish(chain.warm_worker, chain.name, self._score(chain.warm_worker, chain.name, now))

    def moved(self, chain: Chain, worker: str) -> None:
        """Publish the lowest score for a chain on the worker it leaves."""
        if chain.warm_worker is not None and chain.warm_worker != worker:
            self._retain(chain.warm_worker, chain.name, LEAST)

    def ended(self, run: Run) -> None:
        """Drop the chains of an ended run."""
        for name in run.chains:
            self.retention.ended(name)
            self._published.pop(name, None)

    def chain_ended(self, chain: Chain) -> None:
        """Release the pages of a finished sub-agent, whose run goes on."""
        self.retention.ended(chain.name)
        self._published.pop(chain.name, None)
        if chain.warm_worker is not None:
            self._retain(chain.warm_worker, chain.name, 0.0)

    def refresh(self, now: float) -> None:
        """Score again the chains that were scored the longest ago, and publish the scores that fell."""
        for _ in range(min(REFRESHED_CHAINS, len(self._published))):
            name, (worker, published) = self._published.popitem(last=False)
            score = self._score(worker, name, now)
            if score < _CHANGED * published:
                self._publish(worker, name, score)
            elif published >= _SETTLED:
                self._published[name] = worker, published

    def _score(self, worker: str, chain: str, now: float) -> float:
        return self.retention.score(chain, now, within_s=self._within_s(worker))

    def _publish(self, worker: str, chain: str, score: float) -> None:
        self._retain(worker, chain, score)
        self._published.pop(chain, None)
        self._published[chain] = worker, score
        if len(self._published) > MAX_PUBLISHED:
            self._published.popitem(last=False)

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert len(self._published) <= MAX_PUBLISHED
        assert all(0 < score <= 1 for _, score in self._published.values())
        self.retention.check()
