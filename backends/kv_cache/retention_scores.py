"""Retention scores of chains, set by gateways. At most MAX_SCORES are stored; a chain without one has the highest score."""

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
        """Set the score of a chain and return its previous score."""
        previous = self._of.pop(chain, DEFAULT_SCORE)
        self._of[chain] = score
        if len(self._of) > MAX_SCORES:
            del self._of[next(iter(self._of))]
        return previous

    def revive(self, chain: str) -> None:
        """Remove the score 0 of a released chain that is in use again."""
        if self._of.get(chain) == 0:
            del self._of[chain]
