"""What an upstream is expected to have cached of a chain, learned from `cached_tokens` in its usage. Pure and bounded.

An upstream tells neither its pages nor their end: what is known is how long a chain's last prompt was, and which share of
such prompts came back as cached. Until one did, nothing is expected.
"""

from collections import OrderedDict
from typing import NamedTuple

MAX_CHAINS = 20_000
_FORGET = 0.9
"""Weight that a turn keeps when the next one is seen: about the last ten count."""


class _Seen(NamedTuple):
    prompt_tokens: int
    at: float


class ApproxKvIndex:
    """A prompt is expected to stay for `keep_s`."""

    def __init__(self, keep_s: float, max_chains: int = MAX_CHAINS) -> None:
        self._keep_s, self._max_chains = keep_s, max_chains
        self._chains: OrderedDict[str, _Seen] = OrderedDict()
        self._cached = self._possible = 0.0

    @property
    def share(self) -> float:
        """Of the tokens that may have been cached, those that were."""
        return min(1.0, self._cached / self._possible) if self._possible else 0.0

    def expect(self, chain: str, now: float) -> int:
        """Leading tokens of the chain's next prompt."""
        return int(self.share * self._possible_tokens(chain, now))

    def learn(self, chain: str, *, prompt_tokens: int, cached_tokens: int, now: float) -> None:
        possible = min(self._possible_tokens(chain, now), prompt_tokens)
        if possible:
            self._cached = self._cached * _FORGET + min(cached_tokens, possible)
            self._possible = self._possible * _FORGET + possible
        self._chains.pop(chain, None)
        self._chains[chain] = _Seen(prompt_tokens, now)
        if len(self._chains) > self._max_chains:
            self._chains.popitem(last=False)

    def _possible_tokens(self, chain: str, now: float) -> int:
        seen = self._chains.get(chain)
        return seen.prompt_tokens if seen and now - seen.at <= self._keep_s else 0
