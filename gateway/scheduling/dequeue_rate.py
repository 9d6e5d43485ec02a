"""How fast those who wait begin, of work that the rest overtakes. Pure: time is an argument."""

HALF_LIFE_S = 20.0
"""Of what was seen, counted in time in which somebody waited."""
ASSUMED = 2.0
"""Begins that are taken for granted: the first wait of all says little, and a long one without any begin says much."""


class DequeueRate:
    """Begins, and the time in which somebody waited for one, both forgetting."""

    def __init__(self) -> None:
        self._begun = self._waited_s = 0.0
        self._at: float | None = None

    def record_waiting(self, now: float) -> None:
        """Somebody does, from now on if nobody did."""
        self._advance(now)
        self._at = now

    def record_start(self, now: float, *, others: bool) -> None:
        """One of those that waited, and whether others still do."""
        self._advance(now)
        self._begun += 1.0
        self._at = now if others else None

    def wait_s(self, num_ahead: float, now: float) -> float:
        """Until so many have begun, as fast as they did lately; 0 where nobody has waited yet."""
        self._advance(now)
        return num_ahead * self._waited_s / (self._begun + ASSUMED)

    def _advance(self, now: float) -> None:
        if self._at is not None and now > self._at:
            kept = 0.5 ** ((now - self._at) / HALF_LIFE_S)
            self._begun *= kept
            self._waited_s = (self._waited_s + now - self._at) * kept
            self._at = now
