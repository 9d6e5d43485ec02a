"""Busy and idle time of a worker in whole nanoseconds. Their sum is exactly the time since the start."""


class BusyMeter:
    def __init__(self, now_ns: int) -> None:
        self.busy_ns = 0
        self.idle_ns = 0
        self.attributed_ns = 0
        self.num_steps = 0
        self.marked_ns = now_ns

    def busy_until(self, now_ns: int) -> int:
        """Count the time since the last mark as a step. Return it in nanoseconds."""
        spent = now_ns - self.marked_ns
        self.busy_ns += spent
        self.num_steps += 1
        self.marked_ns = now_ns
        return spent

    def idle_until(self, now_ns: int) -> None:
        """Count the time since the last mark as idle: waiting, or upkeep that no sequence caused."""
        self.idle_ns += now_ns - self.marked_ns
        self.marked_ns = now_ns
