"""KV footprint of each worker: the sum over its chains of context tokens times the chance that they are used again soon.

Pure and bounded: a chain counts where its last turn ran. The least recently used chain is dropped first.
"""

from collections import OrderedDict, defaultdict
from typing import NamedTuple


class _Footprint(NamedTuple):
    worker: str
    tokens: int
    score: float

    @property
    def weight(self) -> float:
        return self.tokens * self.score


MAX_CHAINS = 20_000
"""Largest number of chains. The least recently used one has most likely no pages left."""


class KvFootprints:
    def __init__(self, max_chains: int = MAX_CHAINS) -> None:
        self._max_chains = max_chains
        self._footprints: OrderedDict[str, _Footprint] = OrderedDict()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._footprints)

    def record(self, worker: str, chain: str, tokens: int) -> None:
        """Record that a turn of a chain runs on a worker and will occupy `tokens` tokens."""
        self._drop(chain)
        self._add(chain, _Footprint(worker, tokens, 1.0))
        if len(self._footprints) > self._max_chains:
            self._drop(next(iter(self._footprints)))

    def set_score(self, worker: str, chain: str, score: float) -> None:
        """Set the chance that a chain's pages are used again. 0 drops the chain. Ignored if the chain has moved to another
        worker."""
        footprint = self._footprints.get(chain)
        if footprint is None or footprint.worker != worker:
            return
        self._drop(chain)
        if score > 0:
            self._add(chain, footprint._replace(score=score))

    def tokens(self, worker: str, *, without: str = "") -> float:
        """Return the weighted tokens of all chains on a worker except the chain `without`."""
        own = self._footprints.get(without)
        return self._sums.get(worker, 0.0) - (own.weight if own is not None and own.worker == worker else 0.0)

    def lost(self, worker: str) -> None:
        """Drop all chains of a worker."""
        for chain in [chain for chain, footprint in self._footprints.items() if footprint.worker == worker]:
            self._drop(chain)

    def _add(self, chain: str, footprint: _Footprint) -> None:
        self._footprints[chain] = footprint
        self._sums[footprint.worker] += footprint.weight
        self._counts[footprint.worker] += 1

    def _drop(self, chain: str) -> None:
        footprint = self._footprints.pop(chain, None)
        if footprint is None:
            return
        self._sums[footprint.worker] -= footprint.weight
        self._counts[footprint.worker] -= 1
        if not self._counts[footprint.worker]:  # an exact zero, without rounding errors
            del self._sums[footprint.worker], self._counts[footprint.worker]

    def check(self) -> None:
        """Assert the invariants. For tests."""
        assert len(self._footprints) <= self._max_chains
        assert self._sums.keys() == {footprint.worker for footprint in self._footprints.values()} == self._counts.keys()
        for worker, total in self._sums.items():
            mine = [footprint.weight for footprint in self._footprints.values() if footprint.worker == worker]
            assert len(mine) == self._counts[worker] and abs(total - sum(mine)) <= 1e-6 * max(1.0, sum(mine))
