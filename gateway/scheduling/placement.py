"""Placement of a turn among equivalent workers. Pure and bounded.

a run stays with its pages if waiting there takes less time than prefilling elsewhere
runs with the same first pages that start in one burst share a worker while it has capacity
any other turn goes to the worker with the most free tokens after the expected growth of its runs
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from gateway.routing.decision import PlacementReason

BURST_S = 60.0
"""Seconds from the first run with some first pages during which further ones go to the same worker."""
GROWTH = 1.1
"""Expected factor on the context of a run until its next pause that is long enough to lose its pages."""


class Candidate(NamedTuple):
    """One worker for this turn. `footprint_tokens` is the sum over its runs of context times the chance of reuse.
    `prefill_rate` is in tokens per second."""

    worker: str
    wait_s: float
    resident_tokens: int
    capacity_tokens: int
    footprint_tokens: float
    prefill_rate: float

    def start_s(self, prompt_tokens: int) -> float:
        """Return the seconds until the first token."""
        return self.wait_s + (prompt_tokens - self.resident_tokens) / self.prefill_rate

    def free_tokens(self, prompt_tokens: int) -> float:
        """Return the free tokens with this prompt and growth. Negative if they exceed the capacity."""
        return self.capacity_tokens - GROWTH * (self.footprint_tokens + prompt_tokens - self.resident_tokens)


class Placed(NamedTuple):
    worker: str
    why: PlacementReason


class Placement:
    """Remembers the worker of the last run with each prefix, for at most `max_prefixes` prefixes."""

    def __init__(self, max_prefixes: int = 4096) -> None:
        self._max_prefixes = max_prefixes
        self._bursts: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bursts)

    def choose(self, sites: Sequence[Candidate], prompt_tokens: int, now: float, *, prefix: bytes = b"") -> Placed:
        """Return the worker of a turn. `prefix` is the hash of the first pages of the prompt, empty if unknown. Needs at
        least one candidate."""
        warm = [site for site in sites if 2 * site.resident_tokens >= prompt_tokens]
        if warm:
            home = min(warm, key=lambda site: (site.start_s(prompt_tokens), site.worker))
            away = min(sites, key=lambda site: (site.start_s(prompt_tokens), site.worker))
            pays = away.start_s(prompt_tokens) < home.start_s(prompt_tokens) and away.free_tokens(prompt_tokens) > 0
            return Placed(away.worker, "moves") if pays else Placed(home.worker, "stays")
        burst = self._of_burst(sites, prompt_tokens, now, prefix)
        if burst is not None:
            return Placed(burst, "burst")
        roomiest = max(sites, key=lambda site: (site.free_tokens(prompt_tokens), -site.wait_s, site.worker))
        return Placed(roomiest.worker, "roomiest")

    def record_placement(self, worker: str, now: float, *, prefix: bytes) -> None:
        """Record that a run with this prefix starts on a worker. The burst lasts BURST_S from its first run."""
        previous, at = self._bursts.get(prefix, ("", 0.0))
        if previous == worker and now - at <= BURST_S:
            return
        self._bursts.pop(prefix, None)
        self._bursts[prefix] = worker, now
        if len(self._bursts) > self._max_prefixes:
            self._bursts.popitem(last=False)

    def _of_burst(self, sites: Sequence[Candidate], prompt_tokens: int, now: float, prefix: bytes) -> str | None:
        worker, at = self._bursts.get(prefix, ("", 0.0))
        if not prefix or not worker or now - at > BURST_S:
            return None
        return next((s.worker for s in sites if s.worker == worker and s.free_tokens(prompt_tokens) > 0), None)

    def check(self) -> None:
        """Assert the invariants. For tests."""
        assert len(self._bursts) <= self._max_prefixes
