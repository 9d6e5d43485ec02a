import random

from gateway.scheduling.kv_footprint import KvFootprints


def test_chain_counts_on_its_last_worker_by_its_score() -> None:
    prints = KvFootprints()
    prints.record("a", "one", 1000)
    prints.record("a", "two", 500)
    assert prints.tokens("a") == 1500 and prints.tokens("a", without="one") == 500
    prints.set_score("a", "one", 0.25)
    assert prints.tokens("a") == 750
    prints.record("b", "one", 2000)
    prints.set_score("a", "one", 0.001)  # said to the worker that it left
    assert (prints.tokens("a"), prints.tokens("b")) == (500, 2000)
    prints.set_score("b", "one", 0.0)
    prints.lost("a")
    assert prints.tokens("a") == prints.tokens("b") == 0 and len(prints) == 0


def test_a_random_walk_stays_bounded_and_adds_up() -> None:
    rng, prints = random.Random(1), KvFootprints(max_chains=20)
    for _ in range(3000):
        worker, chain = rng.choice("abc"), str(rng.randrange(40))
        match rng.randrange(20):
            case 0:
                prints.lost(worker)
            case number if number < 10:
                prints.record(worker, chain, rng.randrange(100_000))
            case _:
                prints.set_score(worker, chain, rng.choice((0.0, rng.random())))
        prints.check()
