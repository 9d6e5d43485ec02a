import gzip
import json
import random
from pathlib import Path

import pytest

from benchmarks.simulate_baselines import DISCIPLINES
from benchmarks.simulate_loop import Outcome, Rates, Simulation, VirtualWorker
from benchmarks.simulate_pool import Held, VirtualPool
from benchmarks.simulate_trace import Session, Turn, endless, load

NAMES = [
    *("fcfs_lru", "belady_fcfs", "run_fcfs", "continuum_ttl", "las_decay_60s", "lpm", "sticky_least_loaded", "headway"),
    *("belady_resident_first", "belady_lpm"),
]


def sessions(seed: int = 1) -> list[Session]:
    """Agents with bursts of tool calls, and every now and then a person who thinks."""
    rng = random.Random(seed)
    made = []
    for _ in range(40):
        prompt, turns = rng.randrange(20_000, 60_000), []
        for number in range(rng.randrange(10, 40)):
            asks = rng.random() < 0.15
            shared = 0 if number == 0 else prompt
            prompt += 1000
            think_s = 0.0 if number == 0 else rng.uniform(60, 300) if asks else rng.uniform(3, 12)
            turns.append(Turn(prompt, shared, 300, think_s, "tool_use"))
        made.append(tuple(turns))
    return made


def simulate(name: str, *, pool: int, workers: int = 1, host: int = 0, hours: float = 1.0, num: int = 16) -> Outcome:
    discipline = DISCIPLINES[name](workers, Rates())
    tails, by_worth = discipline.keep_tails, discipline.host_by_worth
    pools = [VirtualPool(pool, host, keep_tails=tails, host_by_worth=by_worth) for _ in range(workers)]
    made = [VirtualWorker(number, one) for number, one in enumerate(pools)]
    simulation = Simulation(discipline, made, endless(sessions(), 0), rates=Rates(), until_s=3600 * hours, from_s=300.0)
    outcome = simulation.closed(num, random.Random(0))
    for worker in made:
        worker.pool.check()
    return outcome


def test_disciplines_equal_those_of_the_page() -> None:
    assert list(DISCIPLINES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_discipline_keeps_the_pool_whole_on_one_worker_and_on_three(name: str) -> None:
    for workers in (1, 3):
        outcome = simulate(name, pool=200_000, workers=workers, host=100_000, hours=0.5)
        assert outcome.turns > 0
        assert outcome.cached_tokens <= outcome.shared_tokens <= outcome.prompt_tokens


def test_the_same_seed_gives_the_same_figures() -> None:
    assert simulate("headway", pool=300_000) == simulate("headway", pool=300_000)


def test_order_and_retention_complete_more_turns_in_a_small_pool() -> None:
    ours, plain = (simulate(name, pool=600_000, num=48).turns for name in ("headway", "fcfs_lru"))
    assert ours > 1.8 * plain


def test_order_and_retention_change_nothing_in_a_large_pool() -> None:
    ours, plain = (simulate(name, pool=10_000_000).turns for name in ("headway", "fcfs_lru"))
    assert ours == pytest.approx(plain, rel=0.02)


def test_open_loop_serves_every_arrival_given_time() -> None:
    discipline = DISCIPLINES["headway"](1, Rates())
    worker = VirtualWorker(0, VirtualPool(10_000_000, 0, keep_tails="compacted"))
    simulation = Simulation(discipline, [worker], endless(sessions(), 0), rates=Rates(), until_s=7200, from_s=0)
    outcome = simulation.open(20.0, random.Random(0))
    assert len(outcome.run_s) + len(simulation.live) == simulation.num_begun
    assert outcome.longest_wait_s < 60


@pytest.mark.parametrize("by_worth", [False, True])
def test_random_walk_keeps_the_tokens_of_the_pool(by_worth: bool) -> None:
    rng, pool = random.Random(2), VirtualPool(10_000, 4_000, keep_tails="all", host_by_worth=by_worth)
    running: set[int] = set()

    def worth(held: Held, now: float) -> tuple[float, ...]:
        return (rng.random(),)

    for step in range(3000):
        chain, total = rng.randrange(30), rng.randrange(1, 3000)
        if chain in running:
            pool.end(chain, float(step), worth)
            running.remove(chain)
        elif pool.fits(total):
            shared = rng.randrange(total)
            on_device, reloaded = pool.begin(chain, shared, total, float(step), worth)
            assert 0 <= on_device + reloaded <= shared
            running.add(chain)
        pool.check()


def test_a_trace_is_read_up_to_the_first_context_that_is_too_long(tmp_path: Path) -> None:
    requests = [
        [0.0, 1000, 10, 1.0, None, "tool_use", 0, 0, 16, ["text"]],
        [5.0, 1100, 20, 1.0, 900.0, "end_turn", 15, 15, 18, ["text"]],
        [9.0, 9000, 30, 1.0, 1.0, "", 18, 18, 141, ["text"]],
    ]
    streams = [{"kind": "main", "req": requests}, {"kind": "sub-agent", "req": requests}]
    path = tmp_path / "trace.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"id": "a", "bs": 64, "streams": streams}) + "\n")
    (session,) = load(path, max_context=8000, max_think_s=300.0)
    assert session == (Turn(1000, 0, 10, 0.0, "tool_use"), Turn(1100, 960, 20, 300.0, "end_turn"))
