"""Which of several alike workers a turn goes to. Pure and bounded.

a run stays where its pages are, while waiting there costs less than computing them anew elsewhere
runs that begin alike in one burst go to one worker, while it has room
any other goes where most is free after what is there has grown as expected
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from gateway.routing.decision import PlacementReason

BURST_S = 60.0
GROWTH = 1.1
"""What a run's context is expected to reach before its next pause that is long enough to lose it."""


class Candidate(NamedTuple):
    """One worker as it is for this turn: how long until it would start, what it holds of the prompt, and how much of its
    pages is spoken for (the sum over its runs of context times the chance that it is wanted again soon)."""

    worker: str
    wait_s: float
    resident_tokens: int
    capacity_tokens: int
    footprint_tokens: float
    prefill_rate: float

    def start_s(self, prompt_tokens: int) -> float:
        return self.wait_s + (prompt_tokens - self.resident_tokens) / self.prefill_rate

    def free_tokens(self, prompt_tokens: int) -> float:
        return self.capacity_tokens - GROWTH * (self.footprint_tokens + prompt_tokens - self.resident_tokens)


class Placed(NamedTuple):
    worker: str
    why: PlacementReason


class Placement:
    """Remembers where the last run of each beginning went, of at most `max_prefixes` beginnings."""

    def __init__(self, max_prefixes: int = 4096) -> None:
        self._max_prefixes = max_prefixes
        self._bursts: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bursts)

    def choose(self, sites: Sequence[Candidate], prompt_tokens: int, now: float, *, prefix: bytes = b"") -> Placed:
        """`prefix` names the first pages of the prompt; empty when it is not known. There is at least one site."""
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
        """A run with this beginning begins there. The burst lasts from its first run on."""
        before, at = self._bursts.get(prefix, ("", 0.0))
        if before == worker and now - at <= BURST_S:
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
        """Asserts the invariants; for tests."""
        assert len(self._bursts) <= self._max_prefixes
