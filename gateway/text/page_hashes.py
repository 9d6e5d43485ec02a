"""The names of a prompt's pages, one behind the other in one piece of memory: a further prompt takes over the first ones at
once, and they take a third of what a list of them does."""

from collections.abc import Iterator, Sequence
from typing import overload

from backends.wire import PAGE_HASH_BYTES, further_hashes, split_hashes


class PageHashes(Sequence[bytes]):
    """Unchangeable. Those of `wire.page_hashes`."""

    __slots__ = ("_joined",)

    def __init__(self, joined: bytes = b"") -> None:
        self._joined = joined

    @classmethod
    def of(
        cls,
        prompt: bytes | bytearray,
        *,
        page_size: int,
        fingerprint: str,
        cache_salt: str,
        shared_tokens: int = 0,
        before: "PageHashes | None" = None,
        num_known: int = 0,
    ) -> "PageHashes":
        """The first `num_known` are those of the prompt `before` it, named in the same way."""
        known = before.leading(num_known) if before is not None else b""
        new = further_hashes(
            prompt,
            page_size=page_size,
            fingerprint=fingerprint,
            cache_salt=cache_salt,
            shared_tokens=shared_tokens,
            num_known=len(known) // PAGE_HASH_BYTES,
            parent=known[-PAGE_HASH_BYTES:],
        )
        return cls(known + b"".join(new))

    def leading(self, count: int) -> bytes:
        """The first ones, joined."""
        return self._joined[: count * PAGE_HASH_BYTES]

    def __len__(self) -> int:
        return len(self._joined) // PAGE_HASH_BYTES

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                return PageHashes(self._joined[start * PAGE_HASH_BYTES : stop * PAGE_HASH_BYTES])
            return [self[one] for one in range(start, stop, step)]
        start = at * PAGE_HASH_BYTES if at >= 0 else len(self._joined) + at * PAGE_HASH_BYTES
        if not 0 <= start < len(self._joined):
            raise IndexError(f"page {at} of {len(self)}")
        return self._joined[start : start + PAGE_HASH_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        return iter(split_hashes(self._joined))
