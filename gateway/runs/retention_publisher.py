"""Tells workers what the pages of chains are worth, when that has changed enough to change what goes first. Bounded.

a turn comes     1, its pages stay until it runs
it ends          P(return within H), then lower and lower as the pause goes on
"""

from collections import OrderedDict
from collections.abc import Callable

from gateway.runs.registry import Chain, Run
from gateway.scheduling.retention import LEAST, WITHIN_S, Retention

MAX_TOLD = 20_000
LOOKED_AT = 1_000
"""Pausing chains that one refresh looks at: a few milliseconds; the others come next time."""
_CHANGED = 0.75
_SETTLED = 0.02
"""Below this nothing more is said: everything else goes later anyway."""

SendRetention = Callable[[str, str, float], None]


class RetentionPublisher:
    """`retain` takes a worker, a chain and a score; `within_s` is a worker's H."""

    def __init__(
        self, retention: Retention, retain: SendRetention, within_s: Callable[[str], float] = lambda _: WITHIN_S
    ) -> None:
        self.retention = retention
        self._retain, self._within_s = retain, within_s
        self._told: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def arrived(self, chain: Chain, now: float) -> None:
        """A turn of this chain waits from now on."""
        self.retention.turn_arrived(chain.name, now)
        worker, score = self._told.pop(chain.name, (chain.warm_worker, 0.0))
        if worker is not None and score < 1.0:
            self._retain(worker, chain.name, 1.0)

    def finished(self, chain: Chain, now: float, *, finish: str, tool: str, keep_s: float = 0.0) -> None:
        """Its turn was answered; the next one comes after a pause, if at all."""
        self.retention.turn_finished(chain.name, now, finish=finish, tool=tool, keep_s=keep_s)
        if chain.warm_worker is not None:
            self._publish(chain.warm_worker, chain.name, self._score(chain.warm_worker, chain.name, now))

    def moved(self, chain: Chain, worker: str) -> None:
        """It leaves the worker that holds its pages for another one."""
        if chain.warm_worker is not None and chain.warm_worker != worker:
            self._retain(chain.warm_worker, chain.name, LEAST)

    def ended(self, run: Run) -> None:
        """Nobody came back to it."""
        for name in run.chains:
            self.retention.ended(name)
            self._told.pop(name, None)

    def chain_ended(self, chain: Chain) -> None:
        """A sub-agent is done: nobody will come back for its pages, though its run goes on."""
        self.retention.ended(chain.name)
        self._told.pop(chain.name, None)
        if chain.warm_worker is not None:
            self._retain(chain.warm_worker, chain.name, 0.0)

    def refresh(self, now: float) -> None:
        """Looks at the chains that were not looked at for the longest."""
        for _ in range(min(LOOKED_AT, len(self._told))):
            name, (worker, told) = self._told.popitem(last=False)
            score = self._score(worker, name, now)
            if score < _CHANGED * told:
                self._publish(worker, name, score)
            elif told >= _SETTLED:
                self._told[name] = worker, told

    def _score(self, worker: str, chain: str, now: float) -> float:
        return self.retention.score(chain, now, within_s=self._within_s(worker))

    def _publish(self, worker: str, chain: str, score: float) -> None:
        self._retain(worker, chain, score)
        self._told.pop(chain, None)
        self._told[chain] = worker, score
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert len(self._told) <= MAX_TOLD
        assert all(0 < score <= 1 for _, score in self._told.values())
        self.retention.check()
