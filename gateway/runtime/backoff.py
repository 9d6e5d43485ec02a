"""Pauses between restarts that double up to a bound. Pure."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 30.0


class Backoff:
    """`pause_s` is the next pause. Work that ran for the longest pause starts with the first one again."""

    def __init__(self) -> None:
        self.pause_s = FIRST_PAUSE_S

    def ran(self, seconds: float) -> None:
        """Reset if the work ran for the longest pause."""
        if seconds >= LAST_PAUSE_S:
            self.reset()

    def reset(self) -> None:
        self.pause_s = FIRST_PAUSE_S

    def take(self) -> float:
        """Return the next pause, and double the one after it."""
        pause_s, self.pause_s = self.pause_s, min(2 * self.pause_s, LAST_PAUSE_S)
        return pause_s
