"""The virtual clock: chains of sessions, workers that prefill one prompt at a time and decode any number, and the results.

arrival ──▶ waiting ──choose──▶ prefill (serial: reload, uncached) ──▶ decode (at one rate) ──▶ pause ──▶ next arrival
"""

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from benchmarks.simulate_pool import Tails, VirtualPool, Worth
from benchmarks.simulate_trace import Session, Turn

LOOK_AGAIN_S = 5.0
"""Seconds after which a discipline that left a free worker idle is called again."""


OLD_ENOUGH_S = 600.0
"""Seconds from which an unfinished run counts for fairness."""


class Rates(NamedTuple):
    """Rates in tokens a second."""

    prefill: float = 16_000.0
    decode: float = 60.0
    reload: float = 300_000.0


@dataclass(slots=True, eq=False)
class Chain:
    """One running session. `attained` is uncached prefill and decode work so far; clairvoyant disciplines use `next_at`."""

    number: int
    session: Session
    started: float
    turn: int = 0
    attained: float = 0.0
    decayed: float = 0.0
    decayed_at: float = 0.0
    next_at: float = 0.0
    waits: bool = False
    over: bool = False
    worker: int = -1
    calls_tool: bool = False

    @property
    def now_at(self) -> Turn:
        return self.session[self.turn]


@dataclass(slots=True, eq=False)
class Pending:
    """A turn that waits or runs."""

    chain: Chain
    turn: Turn
    arrival: float
    worker: int = 0

    @property
    def total(self) -> int:
        return self.turn.prompt + self.turn.output


@dataclass(slots=True, eq=False)
class VirtualWorker:
    number: int
    pool: VirtualPool
    busy: bool = False
    busy_s: float = 0.0
    running: int = 0
    waiting: list[Pending] = field(default_factory=list)

    def resident(self, pending: Pending) -> int:
        """Return the tokens of its prompt on device or host."""
        number, shared = pending.chain.number, pending.turn.shared
        return max(self.pool.device_tokens(number, shared), self.pool.host_tokens(number, shared))

    def uncached(self, pending: Pending) -> int:
        return pending.turn.prompt - self.resident(pending)


class Discipline(Protocol):
    """A contender: which worker a turn waits for, which turn is next, and which KV to keep."""

    keep_tails: Tails
    host_by_worth: bool

    def place(self, pending: Pending, workers: list[VirtualWorker], now: float) -> int: ...

    def choose(self, worker: VirtualWorker, now: float) -> Pending | None: ...

    def worth(self, worker: VirtualWorker) -> Worth: ...

    def started(self, pending: Pending, uncached: int, now: float) -> None: ...

    def finished(self, pending: Pending, now: float) -> None: ...


@dataclass(slots=True)
class Outcome:
    """Measurements after the first part of the time, `from_s`, which is dropped."""

    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    shared_tokens: int = 0
    longest_wait_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    busy_s: float = 0.0


class Simulation:
    def __init__(
        self,
        discipline: Discipline,
        workers: list[VirtualWorker],
        sessions: Iterator[Session],
        *,
        rates: Rates,
        until_s: float,
        from_s: float,
    ) -> None:
        self.discipline, self.workers, self.rates = discipline, workers, rates
        self._sessions, self._until_s, self._from_s = sessions, until_s, from_s
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = self.num_begun = 0
        self.live: dict[int, Chain] = {}
        self.outcome = Outcome()
        self._closed = False

    def closed(self, num_sessions: int, rng: random.Random) -> Outcome:
        """Run a constant number of sessions: when one ends, another begins."""
        self._closed = True
        for _ in range(num_sessions):
            self._at(rng.uniform(0.0, 60.0), self._begin)
        return self._run()

    def open(self, sessions_per_hour: float, rng: random.Random) -> Outcome:
        """Run sessions that arrive at random, independent of earlier ones."""
        at = rng.expovariate(sessions_per_hour / 3600)
        while at < self._until_s:
            self._at(at, self._begin)
            at += rng.expovariate(sessions_per_hour / 3600)
        return self._run()

    def _run(self) -> Outcome:
        self._at(LOOK_AGAIN_S, self._look_again)
        while self._events and self._events[0][0] < self._until_s:
            at, _, event = heapq.heappop(self._events)
            event(at)
        for worker in self.workers:
            self.outcome.busy_s += worker.busy_s
            for pending in worker.waiting:
                self._waited(self._until_s - pending.arrival)
        for chain in self.live.values():
            if self._until_s - chain.started >= OLD_ENOUGH_S:
                self.outcome.speeds.append(self._speed(chain, self._until_s))
        return self.outcome

    def _speed(self, chain: Chain, now: float) -> float:
        """Return the ratio of its time on an empty worker with unlimited memory to its actual time, turns and pauses
        included."""
        alone_s = sum(t.output / self.rates.decode + t.think_s for t in chain.session[: chain.turn])
        return alone_s / max(1e-9, now - chain.started)

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))

    def _look_again(self, now: float) -> None:
        for worker in self.workers:
            self._fill(worker, now)
        self._at(now + LOOK_AGAIN_S, self._look_again)

    def _begin(self, now: float) -> None:
        chain = Chain(self.num_begun, next(self._sessions), now, decayed_at=now)
        self.num_begun += 1
        self.live[chain.number] = chain
        self._arrive(chain, now)

    def _arrive(self, chain: Chain, now: float) -> None:
        pending = Pending(chain, chain.now_at, now)
        chain.waits, chain.next_at = True, now
        pending.worker = self.discipline.place(pending, self.workers, now)
        chosen = self.workers[pending.worker]
        chosen.waiting.append(pending)
        self._fill(chosen, now)

    def _fill(self, worker: VirtualWorker, now: float) -> None:
        while not worker.busy and worker.waiting:
            pending = self.discipline.choose(worker, now)
            if pending is None:
                return
            self._start(pending, worker, now)

    def _start(self, pending: Pending, worker: VirtualWorker, now: float) -> None:
        worker.waiting.remove(pending)
        chain, turn = pending.chain, pending.turn
        chain.waits, chain.worker = False, worker.number
        worth = self.discipline.worth(worker)
        on_device, reloaded = worker.pool.begin(chain.number, turn.shared, pending.total, now, worth)
        uncached = turn.prompt - on_device - reloaded
        self.discipline.started(pending, uncached, now)
        if now >= self._from_s:
            self._waited(now - pending.arrival)
            self.outcome.prompt_tokens += turn.prompt
            self.outcome.cached_tokens += on_device + reloaded
            self.outcome.shared_tokens += turn.shared
        seconds = uncached / self.rates.prefill + reloaded / self.rates.reload
        worker.busy, worker.busy_s = True, worker.busy_s + seconds
        worker.running += 1
        self._at(now + seconds, lambda at: self._prefilled(pending, worker, at))

    def _waited(self, seconds: float) -> None:
        self.outcome.longest_wait_s = max(self.outcome.longest_wait_s, seconds)
        self.outcome.waits_s.append(seconds)

    def _prefilled(self, pending: Pending, worker: VirtualWorker, now: float) -> None:
        worker.busy = False
        self._at(now + pending.turn.output / self.rates.decode, lambda at: self._finished(pending, worker, at))
        self._fill(worker, now)

    def _finished(self, pending: Pending, worker: VirtualWorker, now: float) -> None:
        chain = pending.chain
        worker.running -= 1
        chain.turn += 1
        chain.calls_tool = pending.turn.finish == "tool_use"
        chain.over = chain.turn == len(chain.session)
        chain.next_at = float("inf") if chain.over else now + chain.now_at.think_s
        if now >= self._from_s:
            self.outcome.turns += 1
        self.discipline.finished(pending, now)
        worker.pool.end(chain.number, now, self.discipline.worth(worker))
        if chain.over:
            self._ended(chain, now)
        else:
            self._at(chain.next_at, lambda at: self._arrive(chain, at))
        self._fill(worker, now)

    def _ended(self, chain: Chain, now: float) -> None:
        del self.live[chain.number]
        if now >= self._from_s:
            self.outcome.run_s.append(now - chain.started)
            self.outcome.speeds.append(self._speed(chain, now))
        if self._closed:
            self._at(now, self._begin)
