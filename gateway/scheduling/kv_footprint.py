"""How much of each worker's pages is spoken for: context times the chance that it is wanted again soon, over its chains.

Pure and bounded: a chain is counted where it went last; the one not heard of for the longest is forgotten.
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
"""That hold pages; whoever ran longest ago has most likely none left."""


class KvFootprints:
    def __init__(self, max_chains: int = MAX_CHAINS) -> None:
        self._max_chains = max_chains
        self._held: OrderedDict[str, _Footprint] = OrderedDict()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._held)

    def record(self, worker: str, chain: str, tokens: int) -> None:
        """A turn of this chain runs there and will hold so many tokens."""
        self._drop(chain)
        self._add(chain, _Footprint(worker, tokens, 1.0))
        if len(self._held) > self._max_chains:
            self._drop(next(iter(self._held)))

    def set_score(self, worker: str, chain: str, score: float) -> None:
        """What its pages there are worth from now on; nothing once it is over, or has left."""
        held = self._held.get(chain)
        if held is None or held.worker != worker:
            return
        self._drop(chain)
        if score > 0:
            self._add(chain, held._replace(score=score))

    def tokens(self, worker: str, *, without: str = "") -> float:
        """Of all chains there but one."""
        own = self._held.get(without)
        return self._sums.get(worker, 0.0) - (own.weight if own is not None and own.worker == worker else 0.0)

    def lost(self, worker: str) -> None:
        """It holds nothing any more."""
        for chain in [chain for chain, held in self._held.items() if held.worker == worker]:
            self._drop(chain)

    def _add(self, chain: str, held: _Footprint) -> None:
        self._held[chain] = held
        self._sums[held.worker] += held.weight
        self._counts[held.worker] += 1

    def _drop(self, chain: str) -> None:
        held = self._held.pop(chain, None)
        if held is None:
            return
        self._sums[held.worker] -= held.weight
        self._counts[held.worker] -= 1
        if not self._counts[held.worker]:  # nothing is nothing, whatever rounding has left
            del self._sums[held.worker], self._counts[held.worker]

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert len(self._held) <= self._max_chains
        assert self._sums.keys() == {held.worker for held in self._held.values()} == self._counts.keys()
        for worker, total in self._sums.items():
            mine = [held.weight for held in self._held.values() if held.worker == worker]
            assert len(mine) == self._counts[worker] and abs(total - sum(mine)) <= 1e-6 * max(1.0, sum(mine))
