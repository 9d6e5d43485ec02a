"""Between links and the engine, on the engine's thread: frames in, frames out, credits, cache reports.

The engine's answers leave as encoded frames in the order of `wire.py`'s promises: text, cache changes, ends, then load.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from backends.engine import Engine, Output
from backends.limits import Limits
from backends.wire import (
    CACHE_CHUNK_PAGES,
    Abort,
    Cache,
    Down,
    Drain,
    Load,
    Reprioritize,
    Retain,
    Submit,
    Tokens,
    Up,
    encode,
)

LOAD_EVERY_NS, IDLE_LOAD_EVERY_NS = 50_000_000, 900_000_000
"""A busy and an idle worker report about this often; changes of what runs, waits or is granted are reported at once."""


class Attach(NamedTuple):
    link: int


class Detach(NamedTuple):
    link: int


class Frame(NamedTuple):
    link: int
    message: Down


Command = Attach | Detach | Frame


class Outgoing(NamedTuple):
    """Frames for one link; with `close`, the reason to close it afterwards."""

    link: int
    frames: list[bytes]
    close: str = ""


@dataclass(slots=True)
class _Link:
    """`cache_sequence` counts its Cache frames; `shown` is what its last Load said, without the times."""

    cache_sequence: int = 0
    shown: tuple[int, ...] = ()
    shown_ns: int = 0


class Desk:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._links: dict[int, _Link] = {}

    def take(self, command: Command, now_ns: int) -> list[Outgoing]:
        """Applies one command. Returns what must go out at once: the resync of a new link, or why one is closed."""
        match command:
            case Attach(link):
                reported = self.report(now_ns)
                state = self._links[link] = _Link()
                return [*reported, Outgoing(link, [encode(chunk) for chunk in self._resync(state)])]
            case Detach(link):
                if self._links.pop(link, None) is not None:
                    self._engine.abandon(link)
                return []
            case Frame(link, message):
                return self._receive(link, message) if link in self._links else []
            case _:
                assert_never(command)

    def report(self, now_ns: int) -> list[Outgoing]:
        """Everything that happened since the last report, link by link."""
        output = self._engine.take_output()
        stored, removed = self._engine.index.take_changes()
        outgoing = []
        for number, (link, state) in enumerate(self._links.items()):
            messages = [*self._texts(output, link), *_cache(state, stored, removed)]
            messages += [finished for owner, finished in output.finished if owner == link]
            messages += self._load(state, number, now_ns)
            if messages:
                outgoing.append(Outgoing(link, [encode(message) for message in messages]))
        return outgoing

    def _receive(self, link: int, message: Down) -> list[Outgoing]:
        match message:
            case Submit():
                if self._engine.has(link, message.request):
                    self._links.pop(link)
                    self._engine.abandon(link)
                    return [Outgoing(link, [], f"request {message.request} was submitted while it runs")]
                self._engine.submit(link, message)
            case Abort(request):
                self._engine.abort(link, request)
            case Reprioritize(request, priority):
                self._engine.reprioritize(link, request, priority)
            case Retain(chain, score):
                self._engine.index.retain(chain, score)
            case Drain():
                self._engine.draining = True
            case _:
                assert_never(message)
        return []

    def _texts(self, output: Output, link: int) -> Iterator[Up]:
        if pieces := output.pieces.get(link):
            yield Tokens(tuple(pieces))

    def _resync(self, state: _Link) -> Iterator[Cache]:
        """All that is resident, as of a report: nothing that it lists is reported again."""
        names = self._engine.index.names()
        for start in range(0, max(1, len(names)), CACHE_CHUNK_PAGES):
            chunk = b"".join(names[start : start + CACHE_CHUNK_PAGES])
            yield Cache(sequence=state.cache_sequence, stored=chunk, reset=start == 0)
            state.cache_sequence += 1

    def _load(self, state: _Link, number: int, now_ns: int) -> list[Load]:
        """One Load if it says something new."""
        load = self._state(number)
        shown = (load.running, load.waiting, load.credit_sequences, load.credit_tokens, load.free_pages, load.cached_pages)
        every_ns = LOAD_EVERY_NS if load.running else IDLE_LOAD_EVERY_NS
        if shown == state.shown and now_ns - state.shown_ns < every_ns:
            return []
        state.shown, state.shown_ns = shown, now_ns
        return [load]

    def _state(self, number: int) -> Load:
        """What link `number` is told. Credits are shared: sequences in equal parts, the odd ones to the first links."""
        engine, links = self._engine, len(self._links)
        scheduler, pool, meter = engine.scheduler, engine.pool, engine.meter
        free = max(0, engine.limits.max_sequences - len(scheduler.running) - len(scheduler.waiting))
        return Load(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_pages=pool.num_free,
            cached_pages=pool.num_cached,
            num_pages=pool.num_pages,
            credit_sequences=0 if engine.draining else free // links + (number < free % links),
            credit_tokens=0 if engine.draining else credit_tokens(scheduler.backlog_tokens, engine.limits),
            busy_s=meter.busy_ns / 1e9,
            idle_s=meter.idle_ns / 1e9,
            attributed_s=meter.attributed_ns / 1e9,
            step_cost=engine.step_cost.coefficients,
        )


def _cache(state: _Link, stored: list[bytes], removed: list[bytes]) -> list[Cache]:
    messages = []
    for start in range(0, max(len(stored), len(removed)), CACHE_CHUNK_PAGES):
        chunk = slice(start, start + CACHE_CHUNK_PAGES)
        gone, come = b"".join(removed[chunk]), b"".join(stored[chunk])
        messages.append(Cache(sequence=state.cache_sequence, stored=come, removed=gone))
        state.cache_sequence += 1
    return messages


def credit_tokens(backlog: int, limits: Limits) -> int:
    """Uncached prompt tokens that may still come: one step's worth waits, or one prompt of any length where none does."""
    return limits.longest if backlog == 0 else max(0, limits.prefill_tokens - backlog)
