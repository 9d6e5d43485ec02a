"""Estimate of the tokens that an upstream has cached of a chain. Pure and bounded.

An upstream reports no cache events. The estimate is the length of the chain's last prompt times the share of such tokens that
`cached_tokens` in the usage reported. It is 0 until an upstream has reported cached tokens.
"""

from collections import OrderedDict
from typing import NamedTuple

MAX_CHAINS = 20_000
_FORGET = 0.9
"""Decay of the share's sums at each turn: about the last ten turns count."""


class _Seen(NamedTuple):
    prompt_tokens: int
    at: float


class ApproxKvIndex:
    """Last prompt of up to `max_chains` chains. A prompt is assumed to stay cached for `keep_s` seconds."""

    def __init__(self, keep_s: float, max_chains: int = MAX_CHAINS) -> None:
        self._keep_s, self._max_chains = keep_s, max_chains
        self._chains: OrderedDict[str, _Seen] = OrderedDict()
        self._cached = self._possible = 0.0

    @property
    def share(self) -> float:
        """Return the share of possibly cached tokens that were cached, 0 to 1."""
        return min(1.0, self._cached / self._possible) if self._possible else 0.0

    def expect(self, chain: str, now: float) -> int:
        """Return how many leading tokens of the chain's next prompt are expected to be cached. `now` in seconds."""
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
