import random

from gateway.scheduling.placement import BURST_S, Candidate, Placement


def site(worker: str, **changes: object) -> Candidate:
    return Candidate(worker, 0.0, 0, 1_000_000, 0.0, 10_000.0)._replace(**changes)  # type: ignore[arg-type]


def test_run_stays_with_its_pages_while_waiting_is_cheaper_than_recomputing() -> None:
    placement = Placement()
    there = site("home", wait_s=5.0, resident_tokens=90_000)
    assert placement.choose([there, site("away")], 100_000, 0.0) == ("home", "stays")
    assert placement.choose([there._replace(wait_s=20.0), site("away")], 100_000, 0.0) == ("away", "moves")


def test_run_does_not_move_to_a_worker_whose_pages_it_would_evict() -> None:
    there = site("home", wait_s=20.0, resident_tokens=90_000)
    assert Placement().choose([there, site("away", footprint_tokens=950_000.0)], 100_000, 0.0) == ("home", "stays")


def test_new_run_goes_to_the_worker_with_most_free_pages() -> None:
    sites = [site("a", footprint_tokens=800_000.0), site("b", footprint_tokens=300_000.0, wait_s=2.0)]
    assert Placement().choose(sites, 50_000, 0.0) == ("b", "roomiest")


def test_runs_with_a_common_prefix_go_to_one_worker_within_a_burst() -> None:
    placement = Placement()
    sites = [site("a"), site("b", footprint_tokens=1000.0)]
    assert placement.choose(sites, 10_000, 0.0, prefix=b"same") == ("a", "roomiest")
    placement.record_placement("a", 0.0, prefix=b"same")
    fuller = [site("a", footprint_tokens=500_000.0), site("b")]
    assert placement.choose(fuller, 10_000, 1.0, prefix=b"same") == ("a", "burst")
    assert placement.choose(fuller, 10_000, 1.0, prefix=b"other") == ("b", "roomiest")
    placement.record_placement("a", BURST_S - 1, prefix=b"same")  # those that follow do not make it longer
    assert placement.choose(fuller, 10_000, 1.1 * BURST_S, prefix=b"same") == ("b", "roomiest")
    full = [site("a", footprint_tokens=999_000.0), site("b")]
    assert placement.choose(full, 10_000, 2.0, prefix=b"same") == ("b", "roomiest")


def test_a_random_walk_stays_bounded_and_always_chooses_a_site() -> None:
    rng, placement = random.Random(3), Placement(max_prefixes=8)
    for step in range(2000):
        sites = [
            site(
                name,
                wait_s=rng.expovariate(0.2),
                resident_tokens=rng.choice((0, rng.randrange(50_000))),
                footprint_tokens=rng.uniform(0, 2e6),
            )
            for name in "abc"[: rng.randrange(1, 4)]
        ]
        prefix = rng.choice((b"", bytes([rng.randrange(40)])))
        chosen = placement.choose(sites, 50_000, step * 0.5, prefix=prefix)
        assert chosen.worker in {one.worker for one in sites}
        if prefix:
            placement.record_placement(chosen.worker, step * 0.5, prefix=prefix)
        placement.check()
    assert len(placement) == 8
