"""What gateways said that the pages of chains are worth. Bounded; of a chain that nobody spoke of pages are worth most."""

DEFAULT_SCORE = 1.0
MAX_SCORES = 65_536


class RetentionScores:
    def __init__(self) -> None:
        self._of: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._of)

    def get(self, chain: str) -> float:
        return self._of.get(chain, DEFAULT_SCORE)

    def put(self, chain: str, score: float) -> float:
        """Returns the score before."""
        before = self._of.pop(chain, DEFAULT_SCORE)
        self._of[chain] = score
        if len(self._of) > MAX_SCORES:
            del self._of[next(iter(self._of))]
        return before

    def revive(self, chain: str) -> None:
        """A released chain has come back."""
        if self._of.get(chain) == 0:
            del self._of[chain]
