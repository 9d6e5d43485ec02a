"""Hashes of a prompt's pages in one contiguous buffer. A following prompt copies the first ones at once; memory is a third of a
list's."""

from collections.abc import Iterator, Sequence
from typing import overload

from backends.wire import PAGE_HASH_BYTES, further_hashes, split_hashes


class PageHashes(Sequence[bytes]):
    """Immutable sequence of the hashes of `wire.page_hashes`."""

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
        """Compute the hashes. The first `num_known` are copied from `before`, hashed with the same parameters."""
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
        """Return the first `count` hashes, joined."""
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
            return [self[position] for position in range(start, stop, step)]
        start = at * PAGE_HASH_BYTES if at >= 0 else len(self._joined) + at * PAGE_HASH_BYTES
        if not 0 <= start < len(self._joined):
            raise IndexError(f"page {at} of {len(self)}")
        return self._joined[start : start + PAGE_HASH_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        return iter(split_hashes(self._joined))
