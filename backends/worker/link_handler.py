"""Link messages to and from the engine, on the engine's thread: frames in, frames out, credits, cache reports.

The engine's answers leave as encoded frames in the order that `wire.py` guarantees: text, cache changes, ends, then load.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from backends.engine.engine import Engine, Output
from backends.engine.request_limits import Refusal, RequestLimits
from backends.engine.sequence import Matcher
from backends.structured_output.grammar import Grammars
from backends.wire import (
    CACHE_CHUNK_PAGES,
    Abort,
    Cache,
    Down,
    Load,
    SetRetention,
    Submit,
    Tokens,
    Up,
    frames,
)

LOAD_EVERY_NS, IDLE_LOAD_EVERY_NS = 50_000_000, 900_000_000
"""Time between reports of a busy and of an idle worker. Changes of running, waiting or credits are reported at once."""


class Attach(NamedTuple):
    link: int


class Detach(NamedTuple):
    link: int


class Frame(NamedTuple):
    link: int
    message: Down


class Compiled(NamedTuple):
    """The grammar of a waiting request is compiled, or its compilation failed."""

    link: int
    request: int
    outcome: Matcher | Refusal


Command = Attach | Detach | Frame | Compiled
Post = Callable[[Command], None]


class Outgoing(NamedTuple):
    """Frames for one link; with `close`, the reason to close it afterwards."""

    link: int
    frames: list[bytes]
    close: str = ""


class CacheUpdate(NamedTuple):
    """Page hashes stored and removed, on the device and then in the host cache."""

    stored: list[bytes]
    removed: list[bytes]
    host_stored: list[bytes]
    host_removed: list[bytes]


@dataclass(slots=True)
class _GatewayState:
    """`cache_sequence` counts the link's Cache frames. `shown` is the content of its last Load, without times."""

    cache_sequence: int = 0
    shown: tuple[int, ...] = ()
    shown_ns: int = 0


class LinkHandler:
    """`post` sends a command to this thread from any other."""

    def __init__(self, engine: Engine, grammars: Grammars | None = None, post: Post | None = None) -> None:
        self._engine, self._grammars, self._post = engine, grammars, post
        self._links: dict[int, _GatewayState] = {}
        self._compiling: dict[tuple[int, int], Submit] = {}

    def take(self, command: Command, now_ns: int) -> list[Outgoing]:
        """Apply one command. Return what must be sent at once: the resync of a new link, or the reason to close one."""
        match command:
            case Attach(link):
                reported = self.report(now_ns)
                state = self._links[link] = _GatewayState()
                return [*reported, Outgoing(link, list(frames(self._resync(state))))]
            case Detach(link):
                if self._links.pop(link, None) is not None:
                    self._abandon(link)
                return []
            case Compiled(link, request, outcome):
                self._compiled(link, request, outcome)
                return []
            case Frame(link, message):
                return self._receive(link, message) if link in self._links else []
            case _:
                assert_never(command)

    def report(self, now_ns: int) -> list[Outgoing]:
        """Return everything since the last report, by link."""
        output = self._engine.take_output()
        changes = self._changes()
        outgoing = []
        for number, (link, state) in enumerate(self._links.items()):
            messages = [*self._texts(output, link), *_cache(state, changes)]
            messages += [finished for owner, finished in output.finished if owner == link]
            messages += self._load(state, number, now_ns)
            if messages:
                outgoing.append(Outgoing(link, list(frames(messages))))
        return outgoing

    def _receive(self, link: int, message: Down) -> list[Outgoing]:
        match message:
            case Submit():
                if self._engine.has(link, message.request) or (link, message.request) in self._compiling:
                    self._links.pop(link)
                    self._abandon(link)
                    return [Outgoing(link, [], f"request {message.request} was submitted while it runs")]
                self._submit(link, message)
            case Abort(request):
                if self._compiling.pop((link, request), None) is not None:
                    self._engine.never_ran(link, request)
                self._engine.abort(link, request)
            case SetRetention(chain, score):
                self._engine.set_retention(chain, score)
            case _:
                assert_never(message)
        return []

    def _submit(self, link: int, submit: Submit) -> None:
        """Submit at once, or after the request's grammar is compiled on another thread."""
        grammar = submit.sampling.grammar
        if grammar is None:
            self._engine.submit(link, submit)
        elif refused := self._engine.refusal(submit):
            self._engine.refuse(link, submit.request, refused)
        elif self._grammars is None or self._post is None:
            message = f"{grammar.param}: this worker has no structured output"
            self._engine.refuse(link, submit.request, Refusal("bad_grammar", message, grammar.param))
        else:
            post, request = self._post, submit.request
            self._compiling[link, request] = submit
            self._grammars.compile(grammar, lambda outcome: post(Compiled(link, request, outcome)), tenant=submit.cache_salt)

    def _compiled(self, link: int, request: int, outcome: Matcher | Refusal) -> None:
        """Submit a request whose grammar is compiled. One that was aborted in the meantime is ignored."""
        submit = self._compiling.pop((link, request), None)
        if submit is None:
            return
        if isinstance(outcome, Refusal):
            self._engine.refuse(link, request, outcome)
        else:
            self._engine.submit(link, submit, outcome)

    def _abandon(self, link: int) -> None:
        for key in [key for key in self._compiling if key[0] == link]:
            del self._compiling[key]
        self._engine.abandon(link)

    def _texts(self, output: Output, link: int) -> Iterator[Up]:
        if pieces := output.pieces.get(link):
            yield Tokens(tuple(pieces))

    def _changes(self) -> CacheUpdate:
        tier = self._engine.tier
        host_stored, host_removed = tier.take_changes() if tier else ([], [])
        return CacheUpdate(*self._engine.index.take_changes(), host_stored, host_removed)

    def _resync(self, state: _GatewayState) -> list[Cache]:
        """Return all resident pages as of a report. Later reports do not repeat them."""
        tier = self._engine.tier
        everything = CacheUpdate(self._engine.index.page_hashes(), [], tier.page_hashes() if tier else [], [])
        return _cache(state, everything, reset=True)

    def _load(self, state: _GatewayState, number: int, now_ns: int) -> list[Load]:
        """Return a Load if its content changed or its time has come, else nothing."""
        load = self._state(number)
        shown = (load.running, load.waiting, load.credit_sequences, load.credit_tokens, load.free_pages, load.cached_pages)
        every_ns = LOAD_EVERY_NS if load.running else IDLE_LOAD_EVERY_NS
        if shown == state.shown and now_ns - state.shown_ns < every_ns:
            return []
        state.shown, state.shown_ns = shown, now_ns
        return [load]

    def _state(self, number: int) -> Load:
        """Return the Load of link `number`. Credit sequences are split equally, the remainder among the first links."""
        engine, links = self._engine, len(self._links)
        scheduler, pool, busy_meter = engine.scheduler, engine.pool, engine.busy_meter
        free = max(0, engine.limits.max_sequences - len(scheduler.running) - len(scheduler.waiting))
        return Load(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_pages=pool.num_free,
            cached_pages=pool.num_cached,
            num_pages=pool.num_pages,
            credit_sequences=free // links + (number < free % links),
            credit_tokens=credit_tokens(scheduler.backlog_tokens, engine.limits),
            busy_s=busy_meter.busy_ns / 1e9,
            idle_s=busy_meter.idle_ns / 1e9,
            attributed_s=busy_meter.attributed_ns / 1e9,
            step_cost=engine.step_cost.coefficients,
            reload_s_per_token=engine.tier.page_s / engine.limits.page_size if engine.tier else 0.0,
        )


def _cache(state: _GatewayState, changes: CacheUpdate, *, reset: bool = False) -> list[Cache]:
    """Return the changes in as many frames as needed; with `reset` at least one."""
    messages = []
    for start in range(0, max(int(reset), *map(len, changes)), CACHE_CHUNK_PAGES):
        stored, removed, host_stored, host_removed = (
            b"".join(page_hashes[start : start + CACHE_CHUNK_PAGES]) for page_hashes in changes
        )
        message = Cache(
            sequence=state.cache_sequence,
            stored=stored,
            removed=removed,
            reset=reset and start == 0,
            host_stored=host_stored,
            host_removed=host_removed,
        )
        messages.append(message)
        state.cache_sequence += 1
    return messages


def credit_tokens(backlog: int, limits: RequestLimits) -> int:
    """Return uncached prompt tokens that may still arrive: one step's worth, or one prompt of any length if none waits."""
    return limits.longest if backlog == 0 else max(0, limits.prefill_tokens - backlog)
