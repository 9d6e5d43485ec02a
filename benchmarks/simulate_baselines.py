"""Baselines of the simulator, each as three functions: which worker, which turn next, which KV to evict first.

The belady ones know when every chain returns; no server can.
"""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.simulate_headway import Headway
from benchmarks.simulate_loop import Chain, Discipline, Pending, Rates, VirtualWorker
from benchmarks.simulate_pool import Held, Tails, Worth

TTL_S = 60.0
HALF_LIFE_S = 60.0

Order = Callable[[Pending, VirtualWorker, float], tuple[float, ...]]
Value = Callable[[Held, Chain, float], tuple[float, ...]]
Place = Callable[[Pending, list[VirtualWorker]], VirtualWorker]


class Rules(NamedTuple):
    """A baseline. `skips`: a turn that does not fit lets the next one pass."""

    order: Order
    value: Value
    place: Place
    skips: bool = False


class Baseline:
    keep_tails: Tails = "all"
    host_by_worth = False

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._chains: dict[int, Chain] = {}

    def place(self, pending: Pending, workers: list[VirtualWorker], now: float) -> int:
        self._chains[pending.chain.number] = pending.chain
        return self._rules.place(pending, workers).number

    def choose(self, worker: VirtualWorker, now: float) -> Pending | None:
        ordered = sorted(worker.waiting, key=lambda pending: (*self._rules.order(pending, worker, now), pending.arrival))
        looked_at = ordered if self._rules.skips else ordered[:1]
        return next((pending for pending in looked_at if worker.pool.fits(pending.total)), None)

    def worth(self, worker: VirtualWorker) -> Worth:
        return lambda held, now: self._rules.value(held, self._chains[held.chain], now)

    def started(self, pending: Pending, uncached: int, now: float) -> None:
        self._serve(pending.chain, uncached, now)

    def finished(self, pending: Pending, now: float) -> None:
        self._serve(pending.chain, pending.turn.output, now)

    def _serve(self, chain: Chain, tokens: int, now: float) -> None:
        chain.attained += tokens
        chain.decayed = _decayed(chain, now) + tokens
        chain.decayed_at = now


def _decayed(chain: Chain, now: float) -> float:
    return chain.decayed * float(2 ** (-(now - chain.decayed_at) / HALF_LIFE_S))


def _fcfs(pending: Pending, worker: VirtualWorker, now: float) -> tuple[float, ...]:
    return ()


def _run_fcfs(pending: Pending, worker: VirtualWorker, now: float) -> tuple[float, ...]:
    return (pending.chain.started,)


def _las_decay(pending: Pending, worker: VirtualWorker, now: float) -> tuple[float, ...]:
    return (_decayed(pending.chain, now),)


def _lpm(pending: Pending, worker: VirtualWorker, now: float) -> tuple[float, ...]:
    return (-worker.resident(pending),)


def _resident_first(pending: Pending, worker: VirtualWorker, now: float) -> tuple[float, ...]:
    return (2 * worker.resident(pending) < pending.turn.prompt, pending.chain.attained)


def _lru(held: Held, chain: Chain, now: float) -> tuple[float, ...]:
    return (held.used_at,)


def _ttl(held: Held, chain: Chain, now: float) -> tuple[float, ...]:
    """Evict what is older than a time after its tool call, least recently used first. Of the rest, the youngest run goes
    first."""
    keeps = not held.tail and (chain.waits or (chain.calls_tool and now - held.used_at < TTL_S))
    return (1.0, -chain.started) if keeps else (0.0, held.used_at)


def _belady(held: Held, chain: Chain, now: float) -> tuple[float, ...]:
    """Evict first what is needed last. A waiting turn's KV is needed now, a tail never."""
    return (float("-inf"),) if held.tail else (-chain.next_at,)


def _least_loaded(pending: Pending, workers: list[VirtualWorker]) -> VirtualWorker:
    return min(workers, key=lambda worker: (len(worker.waiting) + worker.running, worker.number))


def _sticky(pending: Pending, workers: list[VirtualWorker]) -> VirtualWorker:
    return workers[pending.chain.worker] if pending.chain.worker >= 0 else _least_loaded(pending, workers)


def _longest_match(pending: Pending, workers: list[VirtualWorker]) -> VirtualWorker:
    return max(workers, key=lambda worker: (worker.resident(pending), -len(worker.waiting) - worker.running, -worker.number))


RULES: dict[str, Rules] = {
    "fcfs_lru": Rules(_fcfs, _lru, _least_loaded),
    "sticky_least_loaded": Rules(_fcfs, _lru, _sticky),
    "run_fcfs": Rules(_run_fcfs, _lru, _sticky),
    "continuum_ttl": Rules(_run_fcfs, _ttl, _sticky),
    "las_decay_60s": Rules(_las_decay, _lru, _sticky),
    "lpm": Rules(_lpm, _lru, _longest_match),
    "belady_fcfs": Rules(_fcfs, _belady, _sticky),
    "belady_lpm": Rules(_lpm, _belady, _longest_match),
    "belady_resident_first": Rules(_resident_first, _belady, _sticky, skips=True),
}


def _baseline(name: str) -> Callable[[int, Rates], Discipline]:
    return lambda workers, rates: Baseline(RULES[name])


DISCIPLINES: dict[str, Callable[[int, Rates], Discipline]] = {
    "fcfs_lru": _baseline("fcfs_lru"),
    "belady_fcfs": _baseline("belady_fcfs"),
    "run_fcfs": _baseline("run_fcfs"),
    "continuum_ttl": _baseline("continuum_ttl"),
    "las_decay_60s": _baseline("las_decay_60s"),
    "lpm": _baseline("lpm"),
    "sticky_least_loaded": _baseline("sticky_least_loaded"),
    "headway": Headway,
    "belady_resident_first": _baseline("belady_resident_first"),
    "belady_lpm": _baseline("belady_lpm"),
}
