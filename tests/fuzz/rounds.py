"""Seeded rounds of a fuzz, for a number of seconds. HEADWAY_FUZZ_SECONDS and HEADWAY_FUZZ_SEED set both."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

SECONDS = float(os.environ.get("HEADWAY_FUZZ_SECONDS", "2"))
SEED = int(os.environ.get("HEADWAY_FUZZ_SEED", "1"))
MIN_ROUNDS = 10
"""Rounds even on a machine that is too slow for the seconds."""


class Rounds:
    """Rounds of one border. `counts` are printed at the end, with the seed. Each round has a generator of its own, so that
    `HEADWAY_FUZZ_SEED` and the number of a round repeat it."""

    def __init__(self, border: str) -> None:
        self.border = border
        self.counts: Counter[str] = Counter()
        self.number = 0

    def __iter__(self) -> Iterator[random.Random]:
        until = time.monotonic() + SECONDS
        while self.number < MIN_ROUNDS or time.monotonic() < until:
            self.number += 1
            yield random.Random(f"{self.border} {SEED} {self.number}")
        counted = ", ".join(f"{name} {count:,}" for name, count in self.counts.most_common(12))
        print(f"fuzz of {self.border}: seed {SEED}, {self.number:,} rounds in {SECONDS:g} s: {counted}")

    def __str__(self) -> str:
        return f"{self.border}: seed {SEED}, round {self.number}"
