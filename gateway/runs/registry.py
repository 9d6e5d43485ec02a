"""What is known of every live run and its chains: lock, warm worker, turns, cost. Bounded; the longest idle goes first.

A chain is found again without any header by the ids we minted, by the history up to an answer that we returned, and by text
that begins with all it last sent. When two live chains could be meant, neither is: a wrong merge is worse than a split.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from gateway.request import Message
from gateway.runs.cache_miss import MAX_TURNS, TurnReport
from gateway.runs.identity import Identity, chain_handle, new_run, public_id, read_id
from gateway.runs.prompt_text_index import PromptTextIndex

_MAX_CHAINS_PER_RUN = 256
_MAX_DIGESTS_PER_CHAIN = 64
_MAX_OWNERS = 4
_MAX_TURNS_COUNTED = 128


@dataclass(slots=True)
class Chain:
    """`locked_model` holds inside a tool loop; `tail` is the digest of the history that ends in our last answer."""

    name: str
    run: str
    parent: str | None
    locked_model: str | None = None
    warm_worker: str | None = None
    turns: int = 0
    calls: int = 0
    tail: bytes = b""
    digests: list[bytes] = field(default_factory=list)
    reports: deque[TurnReport] = field(default_factory=lambda: deque(maxlen=MAX_TURNS))
    """What its last turns found in the cache, and why not more."""


@dataclass(slots=True)
class Run:
    """Sums over all its turns; dollars and seconds. `source` is the field that named it; `num_open` counts its requests
    that have not ended, and with them it goes on, also when it was called final."""

    name: str
    tenant: str
    source: str
    first_seen: float
    last_seen: float
    chains: dict[str, Chain] = field(default_factory=dict)
    turns: int = 0
    device_s: float = 0.0
    usd: float = 0.0
    saved_usd: float = 0.0
    all_large_usd: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    attained: float = 0.0
    """Uncached prefill and decode work in tokens, never decayed."""
    num_open: int = 0
    is_final: bool = False

    @property
    def public_id(self) -> str:
        return public_id(self.name)


class RunRegistry:
    """All live runs. Times are arguments, in seconds on one clock."""

    def __init__(self, max_runs: int, idle_s: float) -> None:
        self._max_runs, self._idle_s = max_runs, idle_s
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._by_handle: dict[bytes, Chain] = {}
        self._by_digest: dict[bytes, list[Chain]] = {}
        self._texts = PromptTextIndex(max_runs)
        self._by_trace: OrderedDict[bytes, str | None] = OrderedDict()
        """The chain with this opening in this trace; None where two have it."""
        self._reached = [0] * _MAX_TURNS_COUNTED
        self._made_room: list[Run] = []

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run: str) -> Run | None:
        return self._runs.get(run)

    def all(self) -> Sequence[Run]:
        """Most recently seen last."""
        return tuple(self._runs.values())

    def recent(self, tenant: str, count: int) -> list[Run]:
        """This tenant's, the one seen last first."""
        return list(islice((run for run in reversed(self._runs.values()) if run.tenant == tenant), count))

    def infer(
        self,
        messages: Sequence[Message],
        *,
        tenant: str,
        secret: bytes,
        random_id: str,
        trace: str = "",
        previous: str = "",
    ) -> Identity:
        """The chain that a history continues: by the id of the answer before, `previous`, by minted ids of calls, by the
        answers we returned, by its opening within a trace that was seen before, by its text; else a new run."""
        if (chain := self._by_handle.get(read_id(secret, previous, tenant=tenant) or b"")) is not None:
            return Identity(chain.run, chain.name, chain.parent, "previous_response_id", final=False)
        for message in reversed(messages):
            for call_id in (message.tool_call_id, *(call.id for call in message.tool_calls)):
                handle = read_id(secret, call_id, tenant=tenant) if call_id else None
                chain = self._by_handle.get(handle) if handle else None
                if chain is not None:
                    return Identity(chain.run, chain.name, chain.parent, "call_id", final=False)
        if (chain := self._continued(messages, tenant)) is not None:
            return Identity(chain.run, chain.name, chain.parent, "history", final=False)
        if (chain := self._traced(messages, tenant, trace)) is not None:
            return Identity(chain.run, chain.name, chain.parent, "traceparent", final=False)
        if (chain := self._continued_text(messages, tenant)) is not None:
            return Identity(chain.run, chain.name, chain.parent, "text", final=False)
        return new_run(tenant, random_id)

    def _continued_text(self, messages: Sequence[Message], tenant: str) -> Chain | None:
        if not any(message.role == "assistant" for message in messages):
            return None
        name = self._texts.find(rendered(messages), tenant=tenant)
        return self._by_handle.get(chain_handle(name)) if name else None

    def record_prompt(self, chain: Chain, messages: Sequence[Message], *, tenant: str, trace: str = "") -> None:
        """Remembers the text of a turn whose chain no id named, and the trace that it came in."""
        self._texts.claim(chain.name, rendered(messages), tenant=tenant)
        if trace:
            key = _opening(messages, tenant, trace)
            owner = self._by_trace.pop(key, chain.name)
            self._by_trace[key] = chain.name if owner == chain.name or not self._is_live(owner) else None
            if len(self._by_trace) > self._max_runs:
                self._by_trace.popitem(last=False)

    def _is_live(self, name: str | None) -> bool:
        """None stands for two chains, of which one may live."""
        return name is None or chain_handle(name) in self._by_handle

    def _traced(self, messages: Sequence[Message], tenant: str, trace: str) -> Chain | None:
        """A trace id alone says little: a whole workflow may have one. Runs that begin alike in one trace are told apart by
        nothing, so neither is meant."""
        if not trace or not any(message.role == "assistant" for message in messages):
            return None
        name = self._by_trace.get(_opening(messages, tenant, trace))
        return self._by_handle.get(chain_handle(name)) if name else None

    def _continued(self, messages: Sequence[Message], tenant: str) -> Chain | None:
        if not self._by_digest or not any(message.role == "assistant" for message in messages):
            return None
        for digest in reversed(history_digests(messages, tenant)):
            owners = self._by_digest.get(digest, [])
            at_tail = [chain for chain in owners if chain.tail == digest]
            if len(at_tail) == 1:
                return at_tail[0]
            if owners:  # a retry of an older turn belongs to its only owner; else nobody can tell
                return owners[0] if len(owners) == 1 else None
        return None

    def touch(self, identity: Identity, *, tenant: str, now: float) -> tuple[Run, Chain]:
        """The run and chain of a request that came in, made if new. The longest idle run makes room."""
        run = self._runs.get(identity.run)
        if run is None:
            while len(self._runs) >= self._max_runs:
                self._made_room.append(self._drop(self._longest_idle()))
            run = Run(identity.run, tenant, identity.source, now, now)
            self._runs[identity.run] = run
        run.last_seen = now
        self._runs.move_to_end(run.name)
        chain = run.chains.pop(identity.chain, None)
        if chain is not None:
            run.chains[chain.name] = chain  # to the end: most recently used
        else:
            chain = Chain(identity.chain, run.name, identity.parent)
            run.chains[chain.name] = chain
            self._by_handle[chain_handle(chain.name)] = chain
            if len(run.chains) > _MAX_CHAINS_PER_RUN:
                self._drop_chain(run, next(iter(run.chains)))
        return run, chain

    def opened(self, run: Run) -> None:
        """One of its requests begins: until it is closed the run is not idle."""
        run.num_open += 1

    def closed(self, run: Run, *, final: bool, now: float) -> Run | None:
        """One of its requests ended. Returns the run when that was the last thing to come of a final one."""
        run.num_open -= 1
        run.is_final |= final
        if self._runs.get(run.name) is not run:
            return None
        run.last_seen = now
        self._runs.move_to_end(run.name)
        return self._drop(run.name) if run.is_final and not run.num_open else None

    def end_chain(self, chain: Chain) -> bool:
        """A sub-agent is done, its run goes on. False when it was gone before."""
        run = self._runs.get(chain.run)
        if run is None or run.chains.get(chain.name) is not chain:
            return False
        self._drop_chain(run, chain.name)
        return True

    def dispatched(self, chain: Chain, *, model: str, worker: str, again: bool = False) -> None:
        """A worker took a turn: it is warm now, and the model is locked until the tool loop ends. `again` when the same
        turn was with another worker before, which does not make it two."""
        chain.locked_model, chain.warm_worker = model, worker
        if again:
            return
        self._reached[min(chain.turns, _MAX_TURNS_COUNTED - 1)] += 1
        chain.turns += 1
        if (run := self._runs.get(chain.run)) is not None:
            run.turns += 1

    def answered(self, chain: Chain, request_messages: Sequence[Message], answer: Message, *, tenant: str) -> None:
        """Remembers the history that ends in our answer, so that a next turn without any id is recognised."""
        run = self._runs.get(chain.run)
        if run is None or run.chains.get(chain.name) is not chain:  # it made room meanwhile
            return
        digest = history_digests((*request_messages, answer), tenant)[-1]
        if chain.tail == digest:
            return
        chain.tail = digest
        owners = self._by_digest.setdefault(digest, [])
        if chain not in owners:
            owners.append(chain)
            chain.digests.append(digest)
        if len(owners) > _MAX_OWNERS:
            self._disown(owners[0], digest)
        if len(chain.digests) > _MAX_DIGESTS_PER_CHAIN:
            self._disown(chain, chain.digests[0])

    def charged(
        self,
        run_name: str,
        *,
        device_s: float,
        usd: float,
        saved_usd: float,
        all_large_usd: float,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
    ) -> Run | None:
        """Adds one attempt to its run's sums; None when the run is no longer known."""
        run = self._runs.get(run_name)
        if run is None:
            return None
        run.device_s += device_s
        run.usd += usd
        run.saved_usd += saved_usd
        run.all_large_usd += all_large_usd
        run.prompt_tokens += prompt_tokens
        run.cached_tokens += cached_tokens
        run.output_tokens += output_tokens
        run.attained += prompt_tokens - cached_tokens + output_tokens
        return run

    def expected_remaining_turns(self, chain: Chain) -> float:
        """Turns that chains made after this many, on average so far.

        Live chains count as ended here, so this errs on the low side; a first turn with no experience expects none.
        """
        reached = self._reached[min(chain.turns, _MAX_TURNS_COUNTED - 1)] or 0
        later = sum(self._reached[chain.turns + 1 :])
        return later / reached if reached else 0.0

    def expire(self, now: float) -> list[Run]:
        """Takes out and returns runs that have been idle for too long, and returns those that have made room for others."""
        gone, self._made_room = self._made_room, []
        while self._runs:
            run = next(iter(self._runs.values()))
            if now - run.last_seen < self._idle_s:
                break
            if run.num_open:
                run.last_seen = now
                self._runs.move_to_end(run.name)
            else:
                gone.append(self._drop(run.name))
        return gone

    def worker_lost(self, worker: str) -> None:
        """Nothing is warm there any more."""
        for run in self._runs.values():
            for chain in run.chains.values():
                if chain.warm_worker == worker:
                    chain.warm_worker = None

    def _longest_idle(self) -> str:
        """Of those with nothing open, if there is one."""
        return next((name for name, run in self._runs.items() if not run.num_open), next(iter(self._runs)))

    def _drop(self, name: str) -> Run:
        """It keeps its chains, which say whose pages may go."""
        run = self._runs.pop(name)
        for chain in run.chains.values():
            self._unlist(chain)
        return run

    def _drop_chain(self, run: Run, name: str) -> None:
        self._unlist(run.chains.pop(name))

    def _unlist(self, chain: Chain) -> None:
        self._texts.forget(chain.name)
        for digest in list(chain.digests):
            self._disown(chain, digest)
        if self._by_handle.get(handle := chain_handle(chain.name)) is chain:
            del self._by_handle[handle]

    def _disown(self, chain: Chain, digest: bytes) -> None:
        chain.digests.remove(digest)
        owners = self._by_digest[digest]
        owners[:] = [owner for owner in owners if owner is not chain]
        if not owners:
            del self._by_digest[digest]

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        chains = [chain for run in self._runs.values() for chain in run.chains.values()]
        assert len(self._runs) <= self._max_runs and len(self._by_trace) <= self._max_runs
        assert {id(chain) for chain in self._by_handle.values()} == {id(chain) for chain in chains}
        owned = sorted((digest, chain.name) for digest, owners in self._by_digest.items() for chain in owners)
        assert owned == sorted((digest, chain.name) for chain in chains for digest in chain.digests)


def _opening(messages: Sequence[Message], tenant: str, trace: str) -> bytes:
    """Names what comes before the first answer, within a trace of a tenant."""
    before = list(takewhile(lambda message: message.role != "assistant", messages))
    text = f"{tenant}\0{trace}\0{rendered(before)}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def in_tool_loop(messages: Sequence[Message]) -> bool:
    """Whether the request carries tool results back, rather than a new turn of the user."""
    return bool(messages) and messages[-1].role == "tool"


def rendered(messages: Sequence[Message]) -> str:
    """The text of a history, the same whatever model it is for; ids of calls do not count."""
    lines = []
    for message in messages:
        lines.append(f"\0{message.role}\0{message.content}")
        lines += [f"\0{call.name}\0{call.arguments}" for call in message.tool_calls]
    return "".join(lines)


def history_digests(messages: Sequence[Message], tenant: str) -> list[bytes]:
    """A digest of the history up to each assistant message, in order. Ids of calls do not count, nor outer blanks."""
    running = hashlib.blake2b(tenant.encode(), digest_size=16)
    digests: list[bytes] = []
    for message in messages:
        calls = [f"{call.name}\0{call.arguments}" for call in message.tool_calls]
        text = "\0".join([message.role, message.content.strip(), *calls])
        running.update(f"{len(text)}\0{text}".encode())
        if message.role == "assistant":
            digests.append(running.copy().digest())
    return digests
