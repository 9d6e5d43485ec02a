"""State of every live run and its chains: model lock, warm worker, turns, cost. Bounded; the longest idle is evicted first.

Without a header a chain is found by minted ids, by the history up to a returned answer, or by the text of its last prompt.
When two live chains match, neither is taken: a wrong merge is worse than a split.
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
    """One chain of turns. `locked_model` applies inside a tool loop. `tail` is the digest of the history up to our last
    answer."""

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
    """Cache results of its last turns."""


@dataclass(slots=True)
class Run:
    """One run, with sums over all its turns in dollars and seconds. `source` is the field that named it. `num_open` counts its
    requests in flight: they keep the run alive, also after a final one."""

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
    """Uncached prompt tokens plus output tokens, never decayed."""
    num_open: int = 0
    is_final: bool = False

    @property
    def public_id(self) -> str:
        return public_id(self.name)


class RunRegistry:
    """All live runs, at most `max_runs`. Times are arguments, in seconds on one clock."""

    def __init__(self, max_runs: int, idle_s: float) -> None:
        self._max_runs, self._idle_s = max_runs, idle_s
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._by_handle: dict[bytes, Chain] = {}
        self._by_digest: dict[bytes, list[Chain]] = {}
        self._texts = PromptTextIndex(max_runs)
        self._by_trace: OrderedDict[bytes, str | None] = OrderedDict()
        """Chain by digest of trace and opening; None where two chains share it."""
        self._reached = [0] * _MAX_TURNS_COUNTED
        self._evicted: list[Run] = []

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run: str) -> Run | None:
        return self._runs.get(run)

    def all(self) -> Sequence[Run]:
        """Return all runs, the most recently seen last."""
        return tuple(self._runs.values())

    def recent(self, tenant: str, count: int) -> list[Run]:
        """Return at most `count` runs of a tenant, the most recently seen first."""
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
        """Return the chain that a history continues, or a new run. Tried in order: the id of the `previous` answer, minted call
        ids, returned answers, the opening within a known trace, the text."""
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
        """Index the text and the trace of a turn whose chain was named by no id."""
        self._texts.claim(chain.name, rendered(messages), tenant=tenant)
        if trace:
            key = _opening(messages, tenant, trace)
            owner = self._by_trace.pop(key, chain.name)
            self._by_trace[key] = chain.name if owner == chain.name or not self._is_live(owner) else None
            if len(self._by_trace) > self._max_runs:
                self._by_trace.popitem(last=False)

    def _is_live(self, name: str | None) -> bool:
        """Return whether a chain is live. None stands for two chains, one of which may be."""
        return name is None or chain_handle(name) in self._by_handle

    def _traced(self, messages: Sequence[Message], tenant: str, trace: str) -> Chain | None:
        """Return the chain with this opening in this trace. A trace id alone is not enough: a whole workflow may share it. Two
        runs with the same trace id and opening are ambiguous: None."""
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
            if owners:  # a retry of an older turn belongs to its only owner; several are ambiguous
                return owners[0] if len(owners) == 1 else None
        return None

    def touch(self, identity: Identity, *, tenant: str, now: float) -> tuple[Run, Chain]:
        """Return the run and chain of an arriving request, created if new. At the bound the longest idle run is evicted."""
        run = self._runs.get(identity.run)
        if run is None:
            while len(self._runs) >= self._max_runs:
                self._evicted.append(self._drop(self._longest_idle()))
            run = Run(identity.run, tenant, identity.source, now, now)
            self._runs[identity.run] = run
        run.last_seen = now
        self._runs.move_to_end(run.name)
        chain = run.chains.pop(identity.chain, None)
        if chain is not None:
            run.chains[chain.name] = chain  # moved to the end: most recently used
        else:
            chain = Chain(identity.chain, run.name, identity.parent)
            run.chains[chain.name] = chain
            self._by_handle[chain_handle(chain.name)] = chain
            if len(run.chains) > _MAX_CHAINS_PER_RUN:
                self._drop_chain(run, next(iter(run.chains)))
        return run, chain

    def opened(self, run: Run) -> None:
        """Count a request that begins. The run is not idle until `closed`."""
        run.num_open += 1

    def closed(self, run: Run, *, final: bool, now: float) -> Run | None:
        """Count a request that ended. Return the run if it is final and this was its last open request."""
        run.num_open -= 1
        run.is_final |= final
        if self._runs.get(run.name) is not run:
            return None
        run.last_seen = now
        self._runs.move_to_end(run.name)
        return self._drop(run.name) if run.is_final and not run.num_open else None

    def end_chain(self, chain: Chain) -> bool:
        """Drop the chain of a finished sub-agent. Return False when it was dropped before."""
        run = self._runs.get(chain.run)
        if run is None or run.chains.get(chain.name) is not chain:
            return False
        self._drop_chain(run, chain.name)
        return True

    def dispatched(self, chain: Chain, *, model: str, worker: str, again: bool = False) -> None:
        """Record the worker of a turn: it is warm now, and the model is locked until the tool loop ends. `again` marks a retry
        on another worker, which does not count as a second turn."""
        chain.locked_model, chain.warm_worker = model, worker
        if again:
            return
        self._reached[min(chain.turns, _MAX_TURNS_COUNTED - 1)] += 1
        chain.turns += 1
        if (run := self._runs.get(chain.run)) is not None:
            run.turns += 1

    def answered(self, chain: Chain, request_messages: Sequence[Message], answer: Message, *, tenant: str) -> None:
        """Index the history that ends in our answer, so that a next turn without ids is recognised."""
        run = self._runs.get(chain.run)
        if run is None or run.chains.get(chain.name) is not chain:  # evicted meanwhile
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
        """Add one attempt to its run's sums. Return the run, or None when it is no longer known."""
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
        """Return the mean number of further turns of chains that reached this many.

        Live chains count as ended, so the estimate is low. It is 0 without any observation.
        """
        reached = self._reached[min(chain.turns, _MAX_TURNS_COUNTED - 1)] or 0
        later = sum(self._reached[chain.turns + 1 :])
        return later / reached if reached else 0.0

    def expire(self, now: float) -> list[Run]:
        """Remove and return runs idle for too long, and return runs evicted since the last call."""
        gone, self._evicted = self._evicted, []
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
        """Forget a lost worker as the warm worker of any chain."""
        for run in self._runs.values():
            for chain in run.chains.values():
                if chain.warm_worker == worker:
                    chain.warm_worker = None

    def _longest_idle(self) -> str:
        """Return the longest idle run without open requests, or else the longest idle one."""
        return next((name for name, run in self._runs.items() if not run.num_open), next(iter(self._runs)))

    def _drop(self, name: str) -> Run:
        """Remove a run from all indexes. It keeps its chains, so that the caller can release their pages."""
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
        """Assert the invariants; for tests."""
        chains = [chain for run in self._runs.values() for chain in run.chains.values()]
        assert len(self._runs) <= self._max_runs and len(self._by_trace) <= self._max_runs
        assert {id(chain) for chain in self._by_handle.values()} == {id(chain) for chain in chains}
        owned = sorted((digest, chain.name) for digest, owners in self._by_digest.items() for chain in owners)
        assert owned == sorted((digest, chain.name) for chain in chains for digest in chain.digests)


def _opening(messages: Sequence[Message], tenant: str, trace: str) -> bytes:
    """Return a digest of the tenant, the trace and the messages before the first answer."""
    opening = list(takewhile(lambda message: message.role != "assistant", messages))
    text = f"{tenant}\0{trace}\0{rendered(opening)}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def in_tool_loop(messages: Sequence[Message]) -> bool:
    """Return whether the request carries tool results, rather than a new user message."""
    return bool(messages) and messages[-1].role == "tool"


def rendered(messages: Sequence[Message]) -> str:
    """Return the text of a history, independent of model and call ids."""
    lines = []
    for message in messages:
        lines.append(f"\0{message.role}\0{message.content}")
        lines += [f"\0{call.name}\0{call.arguments}" for call in message.tool_calls]
    return "".join(lines)


def history_digests(messages: Sequence[Message], tenant: str) -> list[bytes]:
    """Return a digest of the history up to each assistant message, in order. Call ids and outer whitespace are ignored."""
    running = hashlib.blake2b(tenant.encode(), digest_size=16)
    digests: list[bytes] = []
    for message in messages:
        calls = [f"{call.name}\0{call.arguments}" for call in message.tool_calls]
        text = "\0".join([message.role, message.content.strip(), *calls])
        running.update(f"{len(text)}\0{text}".encode())
        if message.role == "assistant":
            digests.append(running.copy().digest())
    return digests
