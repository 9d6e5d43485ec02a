"""Index that finds the chain a prompt continues by its rendered text. Pure and bounded; a wrong merge is worse than a split.

text     [ block | block | ... | block | rest ]     blocks double in size from 64 to 4,096 characters, hashes are chained
a chain  hashes of its last few blocks, and length and digest of its last prompt

A text continues a chain when it begins with the chain's whole last prompt. It is a new chain when two chains match, or when the
match is too short. A long common prefix alone is no evidence: runs of one program begin alike.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

MIN_CHARS = 128
"""Least length of a matching prompt: shorter ones are greetings and task templates that many runs share."""
_FIRST, _LARGEST = 64, 4_096
_KEPT_BLOCKS = 24
_MAX_OWNERS = 8


class _Sent(NamedTuple):
    length: int
    digest: bytes
    blocks: tuple[bytes, ...]


class PromptTextIndex:
    """Index of at most `max_chains` chains of about 2 KB each; the least recently seen is evicted first."""

    def __init__(self, max_chains: int = 20_000) -> None:
        self._max_chains = max_chains
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._owners: dict[bytes, list[str]] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def claim(self, chain: str, text: str, *, tenant: str) -> None:
        """Set the chain's last prompt to `text`."""
        self.forget(chain)
        blocks = tuple(name for _, name in _blocks(text, tenant))[-_KEPT_BLOCKS:]
        self._sent[chain] = _Sent(len(text), _digest(text, tenant), blocks)
        for name in blocks:
            owners = self._owners.setdefault(name, [])
            owners.append(chain)
            if len(owners) > _MAX_OWNERS:
                self._disown(name, owners[0])
        while len(self._sent) > self._max_chains:
            self.forget(next(iter(self._sent)))

    def forget(self, chain: str) -> None:
        sent = self._sent.pop(chain, None)
        for name in sent.blocks if sent else ():
            if chain in self._owners.get(name, ()):
                self._disown(name, chain)

    def _disown(self, name: bytes, chain: str) -> None:
        owners = self._owners[name]
        owners.remove(chain)
        if not owners:
            del self._owners[name]

    def find(self, text: str, *, tenant: str) -> str | None:
        """Return the chain that this text continues; None when there is none or more than one."""
        chains = {chain for _, name in _blocks(text, tenant) for chain in self._owners.get(name, ())}
        for length in sorted({self._sent[chain].length for chain in chains}, reverse=True):
            if MIN_CHARS <= length <= len(text):
                digest = _digest(text[:length], tenant)
                matches = [chain for chain in chains if self._sent[chain][:2] == (length, digest)]
                if matches:
                    return matches[0] if len(matches) == 1 else None
        return None

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert len(self._sent) <= self._max_chains
        for name, owners in self._owners.items():
            assert owners and len(owners) <= _MAX_OWNERS
            assert all(name in self._sent[chain].blocks for chain in owners)


def _blocks(text: str, tenant: str) -> Iterator[tuple[int, bytes]]:
    """Yield the end of each whole block, and its hash, which covers all text up to there."""
    key, start, size, parent = tenant.encode()[:64], 0, _FIRST, b""
    while start + size <= len(text):
        block = text[start : start + size].encode(errors="surrogatepass")
        parent = hashlib.blake2b(parent + block, digest_size=16, key=key).digest()
        start += size
        yield start, parent
        size = min(2 * size, _LARGEST)


def _digest(text: str, tenant: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16, key=tenant.encode()[:64]).digest()
