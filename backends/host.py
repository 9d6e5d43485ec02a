"""The host tier: full pages are written through to host memory as they are named, and come back from there asynchronously.

    device page --save--> slot of the host --load--> a fresh device page

Copies run one after the other in the order they were asked for, so they never race each other, only compute: a sequence
whose pages are on their way does not run, and a step that writes to a page under a copy waits for it first.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from backends.prefix import Changes

T = TypeVar("T")


class Ticket(Protocol):
    def done(self) -> bool: ...

    def wait(self) -> None: ...


class Copier(Protocol):
    """Copies in the order asked for. `page_s` is what a page took lately, 0 before the first."""

    @property
    def page_s(self) -> float: ...

    def save(self, pages: Sequence[int], slots: Sequence[int]) -> Ticket: ...

    def load(self, slots: Sequence[int], pages: Sequence[int]) -> Ticket: ...


class _Copy(NamedTuple, Generic[T]):
    """`reader` waits for it; None for a save."""

    ticket: Ticket
    pages: frozenset[int]
    reader: T | None


class HostTier(Generic[T]):
    """Which names lie in which slots, the least recently used first. Of a chain the last page goes first, see `touch`."""

    def __init__(self, num_slots: int, copier: Copier) -> None:
        self.num_slots = num_slots
        self.num_loaded = 0
        self._copier = copier
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_slots - 1, -1, -1))
        self._copies: deque[_Copy[T]] = deque()
        self._changes = Changes()

    @property
    def page_s(self) -> float:
        """Seconds that a page takes to come back."""
        return self._copier.page_s

    def names(self) -> list[bytes]:
        """Everything that is here."""
        return list(self._slot_of)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Names stored and removed since the last call; what did both in between is in neither."""
        return self._changes.take()

    @property
    def is_copying(self) -> bool:
        return bool(self._copies)

    def match(self, names: Sequence[bytes]) -> int:
        """How many of the first ones are here."""
        return next((i for i, name in enumerate(names) if name not in self._slot_of), len(names))

    def save(self, fresh: Sequence[tuple[bytes, int]]) -> None:
        """Pages that have become full, under their names."""
        new = dict(one for one in fresh if one[0] not in self._slot_of)
        names = list(new)[: self.num_slots]
        if not names:
            return
        slots = [self._take() for _ in names]
        for name in names:
            self._changes.note(name, stored=True)
        self._slot_of.update(reversed(list(zip(names, slots, strict=True))))
        pages = [new[name] for name in names]
        self._copies.append(_Copy(self._copier.save(pages, slots), frozenset(pages), None))

    def load(self, names: Sequence[bytes], pages: Sequence[int], reader: T) -> None:
        """Matched names into fresh pages. `settle` says when `reader` has them."""
        slots = [self._slot_of[name] for name in names]
        self.touch(names)
        self.num_loaded += len(names)
        self._copies.append(_Copy(self._copier.load(slots, pages), frozenset(pages), reader))

    def touch(self, names: Sequence[bytes]) -> None:
        """A chain was used. Its pages are of no use without those before them, so they count as used before them."""
        for name in reversed(names):
            if name in self._slot_of:
                self._slot_of.move_to_end(name)

    def settle(self, *, wait: bool = False) -> list[T]:
        """Readers whose pages are there now. With `wait`, the oldest copy is waited for."""
        ready = []
        while self._copies and (wait or self._copies[0].ticket.done()):
            copy = self._copies.popleft()
            copy.ticket.wait()
            wait = False
            if copy.reader is not None:
                ready.append(copy.reader)
        return ready

    def before_writing(self, pages: Iterable[int]) -> list[T]:
        """Returns when no copy reads or writes these pages, with the readers that became ready meanwhile."""
        ready: list[T] = []
        if self._copies:
            written = set(pages)
            while any(copy.pages & written for copy in self._copies):
                ready += self.settle(wait=True)
        return ready

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        name, slot = self._slot_of.popitem(last=False)
        self._changes.note(name, stored=False)
        return slot

    def check(self) -> None:
        held = [*self._free, *self._slot_of.values()]
        assert sorted(held) == list(range(self.num_slots)), "a slot is lost or held twice"
