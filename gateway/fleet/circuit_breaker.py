"""Circuit breaker of one upstream. Pure: the time is an argument.

closed ── `failures` in a row ──▶ open ── `cooldown_s` ──▶ one probe ── succeeds ──▶ closed
                                   ▲──────────────── fails ────┘
"""

BREAKER_STATES = ("closed", "open", "probing")


class CircuitBreaker:
    def __init__(self, *, failures: int, cooldown_s: float) -> None:
        self._max_failures, self._cooldown_s = failures, cooldown_s
        self.failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        return "closed" if self._open_until is None else "probing" if self._probing else "open"

    def may_try(self, now: float) -> bool:
        return self._open_until is None or (not self._probing and now >= self._open_until)

    def trying(self) -> None:
        """Record that a request is sent. While the breaker is open, this request is the probe."""
        self._probing = self._open_until is not None

    def succeeded(self) -> None:
        self.failures, self._open_until, self._probing = 0, None, False

    def failed(self, now: float) -> None:
        self.failures += 1
        self._probing = False
        if self._open_until is not None or self.failures >= self._max_failures:
            self._open_until = now + self._cooldown_s

    def gave_up(self) -> None:
        """Record that the caller left before the outcome was known, so that another request may probe."""
        self._probing = False
