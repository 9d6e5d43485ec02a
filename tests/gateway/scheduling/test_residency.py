import random

from backends.wire import PAGE_NAME_BYTES, Cache, page_names
from gateway.scheduling.residency import Residency


def name(number: int) -> bytes:
    return number.to_bytes(PAGE_NAME_BYTES, "big")


def names(*numbers: int) -> list[bytes]:
    return [name(number) for number in numbers]


def frame(sequence: int, stored: tuple[int, ...] = (), removed: tuple[int, ...] = (), *, reset: bool = False) -> Cache:
    return Cache(sequence=sequence, stored=b"".join(names(*stored)), removed=b"".join(names(*removed)), reset=reset)


def test_leading_resident_pages_count() -> None:
    residency = Residency(100)
    assert residency.apply("w", frame(5, (1, 2, 4), reset=True))
    assert residency.cached_tokens("w", names(1, 2, 3, 4), 16) == 32
    assert residency.cached_tokens("w", names(3, 1), 16) == 0
    assert residency.cached_tokens("other", names(1), 16) == 0
    assert residency.apply("w", frame(6, (3,), (1,)))
    assert residency.cached_tokens("w", names(1, 2, 3, 4), 16) == 0
    assert residency.cached_tokens("w", names(2, 3, 4), 16) == 48


def test_a_prompt_is_found_by_the_names_that_the_wire_gives() -> None:
    residency = Residency(100)
    prompt = b"".join(number.to_bytes(4, "little") for number in range(40))
    pages = page_names(prompt, page_size=16, fingerprint="f", cache_salt="t")
    residency.apply("w", Cache(sequence=0, stored=b"".join(pages), reset=True))
    assert residency.cached_tokens("w", pages, 16) == 32
    assert residency.cached_tokens("w", page_names(prompt, page_size=16, fingerprint="f", cache_salt="u"), 16) == 0


def test_after_a_gap_nothing_is_known_until_a_reset() -> None:
    residency = Residency(100)
    assert residency.apply("w", frame(0, (1, 2), reset=True))
    assert not residency.apply("w", frame(2, (3,)))
    assert len(residency) == 0
    assert not residency.apply("w", frame(3, (4,)))
    assert residency.cached_tokens("w", names(4), 16) == 0
    assert residency.apply("w", frame(9, (7,), reset=True))
    assert residency.apply("w", frame(10, (8,)))
    assert residency.cached_tokens("w", names(7, 8), 16) == 32


def test_a_reset_replaces_what_was_known() -> None:
    residency = Residency(100)
    residency.apply("w", frame(0, (1, 2), reset=True))
    residency.apply("w", frame(1, (2,), reset=True))
    assert residency.cached_tokens("w", names(1), 16) == 0
    assert len(residency) == 1


def test_the_bound_takes_the_oldest_of_the_largest_worker() -> None:
    residency = Residency(4)
    residency.apply("a", frame(0, (1, 2, 3), reset=True))
    residency.apply("b", frame(0, (9,), reset=True))
    residency.apply("a", frame(1, (4, 5)))
    residency.check()
    assert residency.cached_tokens("b", names(9), 16) == 16
    assert residency.num_pages("a") == 3
    assert residency.cached_tokens("a", names(3, 4, 5), 16) == 48


def test_repair_learns_what_was_cached_and_drops_what_was_claimed() -> None:
    residency = Residency(100)
    residency.apply("w", frame(0, (2, 3), reset=True))
    submitted_at = residency.sequence("w")
    residency.apply("w", frame(1, (4,)))
    residency.repair("w", names(1, 2, 3, 4), 32, page_size=16, since=submitted_at)
    residency.check()
    assert residency.cached_tokens("w", names(1, 2), 16) == 32
    assert residency.cached_tokens("w", names(3), 16) == 0  # claimed at submission, and was not there
    assert residency.cached_tokens("w", names(4), 16) == 16  # stored since
    residency.repair("gone", names(1), 16)


def test_a_random_walk_knows_no_more_than_the_worker_has() -> None:
    rng = random.Random(7)
    residency, truth, sequence = Residency(60), {"a": set[int](), "b": set[int]()}, {"a": -1, "b": -1}
    known = {"a": False, "b": False}
    for _ in range(2000):
        worker = rng.choice("ab")
        held = truth[worker]
        reset = not known[worker] or rng.random() < 0.02
        if reset:
            stored, removed = set(held), set[int]()
        else:
            stored = {rng.randrange(80) for _ in range(rng.randrange(4))} - held
            removed = set(rng.sample(sorted(held), min(len(held), rng.randrange(4))))
            truth[worker] = (held - removed) | stored
        sequence[worker] += 1
        if rng.random() < 0.03:  # the frame is lost
            continue
        known[worker] = residency.apply(worker, frame(sequence[worker], tuple(stored), tuple(removed), reset=reset))
        residency.check()
        for number in rng.sample(range(80), 10):
            if known[worker] and residency.cached_tokens(worker, names(number), 1):
                assert number in truth[worker]
