"""Where a worker's time went, in whole nanoseconds: busy + idle is the time since the start, exactly."""


class BusyMeter:
    def __init__(self, now_ns: int) -> None:
        self.busy_ns = 0
        self.idle_ns = 0
        self.attributed_ns = 0
        self.num_steps = 0
        self.marked_ns = now_ns

    def busy_until(self, now_ns: int) -> int:
        """Everything since the last mark was a step. Returns how long it was."""
        spent = now_ns - self.marked_ns
        self.busy_ns += spent
        self.num_steps += 1
        self.marked_ns = now_ns
        return spent

    def idle_until(self, now_ns: int) -> None:
        """Everything since the last mark was waiting, or upkeep that no sequence caused."""
        self.idle_ns += now_ns - self.marked_ns
        self.marked_ns = now_ns
