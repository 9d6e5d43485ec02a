"""A virtual worker's KV: the number of leading tokens of each chain on the device and on the host. Pages have no hashes.

device   live chains + superseded tails + running = used <= capacity
host     written through when a turn ends; the least recently used chain is evicted, or the one of least worth
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, eq=False)
class Held:
    """Leading tokens of a chain, or with `tail` those that its later turns no longer share. Pinned tokens stay."""

    chain: int
    tokens: int
    used_at: float
    tail: bool = False
    pinned: bool = False


Worth = Callable[[Held, float], tuple[float, ...]]
"""Order of eviction: the lowest value goes first."""


Tails = Literal["all", "compacted"]
"""A chain's superseded tokens that stay until evicted: all, or only if the next turn shares less than half with it."""


class VirtualPool:
    def __init__(self, capacity: int, host_capacity: int, *, keep_tails: Tails, host_by_worth: bool = False) -> None:
        self.capacity, self.host_capacity, self.keep_tails = capacity, host_capacity, keep_tails
        self._host_by_worth = host_by_worth
        self.used = self.pinned = self.host_used = 0
        self.chains: dict[int, Held] = {}
        self.tails: dict[int, Held] = {}
        self.host: dict[int, Held] = {}

    def device_tokens(self, chain: int, shared: int) -> int:
        held = self.chains.get(chain)
        return min(held.tokens, shared) if held else 0

    def host_tokens(self, chain: int, shared: int) -> int:
        held = self.host.get(chain)
        return min(held.tokens, shared) if held else 0

    def fits(self, total: int) -> bool:
        """Return whether a turn of this size would fit if everything unpinned were evicted."""
        return self.pinned + total <= self.capacity

    def begin(self, chain: int, shared: int, total: int, now: float, worth: Worth) -> tuple[int, int]:
        """Pin memory for a turn. Returns how many of its tokens were on the device, and how many came from the host."""
        on_device = self.device_tokens(chain, shared)
        reloaded = max(0, self.host_tokens(chain, shared) - on_device)
        held = self.chains.setdefault(chain, Held(chain, 0, now))
        if held.tokens > on_device:
            self._supersede(held, on_device)
        held.pinned = True
        self._make_room(total - on_device, now, worth)
        self.used += total - on_device
        self.pinned += total
        held.tokens, held.used_at = total, now
        return on_device, reloaded

    def end(self, chain: int, now: float, worth: Worth) -> None:
        held = self.chains[chain]
        held.pinned, held.used_at = False, now
        self.pinned -= held.tokens
        if self.host_capacity:
            self._write_through(chain, held.tokens, now, worth)

    def _supersede(self, held: Held, kept: int) -> None:
        dead = held.tokens - kept
        goes_on = 2 * kept >= held.tokens
        held.tokens = kept
        if self.keep_tails == "all" or (self.keep_tails == "compacted" and not goes_on):
            tail = self.tails.setdefault(held.chain, Held(held.chain, 0, held.used_at, tail=True))
            tail.tokens += dead
            tail.used_at = held.used_at
        else:
            self.used -= dead

    def _make_room(self, tokens: int, now: float, worth: Worth) -> None:
        while (lack := self.used + tokens - self.capacity) > 0:
            loose = [held for group in (self.chains, self.tails) for held in group.values() if not held.pinned and held.tokens]
            victim = min(loose, key=lambda held: worth(held, now))
            gone = min(victim.tokens, lack)
            victim.tokens -= gone
            self.used -= gone
            if not victim.tokens:
                del (self.tails if victim.tail else self.chains)[victim.chain]

    def _write_through(self, chain: int, tokens: int, now: float, worth: Worth) -> None:
        old = self.host.pop(chain, None)
        self.host_used += tokens - (old.tokens if old else 0)
        self.host[chain] = Held(chain, tokens, now)
        while (lack := self.host_used - self.host_capacity) > 0:
            victim = next(iter(self.host.values()))
            if self._host_by_worth:
                victim = min(self.host.values(), key=lambda held: worth(held, now))
            gone = min(victim.tokens, lack)
            victim.tokens -= gone
            self.host_used -= gone
            if not victim.tokens:
                del self.host[victim.chain]

    def check(self) -> None:
        held = [*self.chains.values(), *self.tails.values()]
        assert self.used == sum(one.tokens for one in held) <= self.capacity
        assert self.pinned == sum(one.tokens for one in held if one.pinned)
        assert self.host_used == sum(held.tokens for held in self.host.values()) <= max(self.host_capacity, 0)
