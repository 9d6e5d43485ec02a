import random

import pytest

from backends.wire import PAGE_HASH_BYTES, Cache, page_hashes
from gateway.scheduling.kv_index import KvIndex


def name(number: int) -> bytes:
    return number.to_bytes(PAGE_HASH_BYTES, "big")


def names(*numbers: int) -> list[bytes]:
    return [name(number) for number in numbers]


def frame(sequence: int, stored: tuple[int, ...] = (), removed: tuple[int, ...] = (), *, reset: bool = False) -> Cache:
    return Cache(sequence=sequence, stored=b"".join(names(*stored)), removed=b"".join(names(*removed)), reset=reset)


def test_leading_resident_pages_count() -> None:
    kv_index = KvIndex(100)
    assert kv_index.apply("w", frame(5, (1, 2, 4), reset=True))
    assert kv_index.cached_tokens("w", names(1, 2, 3, 4), 16) == 32
    assert kv_index.cached_tokens("w", names(3, 1), 16) == 0
    assert kv_index.cached_tokens("other", names(1), 16) == 0
    assert kv_index.apply("w", frame(6, (3,), (1,)))
    assert kv_index.cached_tokens("w", names(1, 2, 3, 4), 16) == 0
    assert kv_index.cached_tokens("w", names(2, 3, 4), 16) == 48


def test_prompt_is_found_by_the_page_hashes_of_the_wire() -> None:
    kv_index = KvIndex(100)
    prompt = b"".join(number.to_bytes(4, "little") for number in range(40))
    pages = page_hashes(prompt, page_size=16, fingerprint="f", cache_salt="t")
    kv_index.apply("w", Cache(sequence=0, stored=b"".join(pages), reset=True))
    assert kv_index.cached_tokens("w", pages, 16) == 32
    assert kv_index.cached_tokens("w", page_hashes(prompt, page_size=16, fingerprint="f", cache_salt="u"), 16) == 0


def test_sequence_gap_clears_the_index_until_a_reset() -> None:
    kv_index = KvIndex(100)
    assert kv_index.apply("w", frame(0, (1, 2), reset=True))
    assert not kv_index.apply("w", frame(2, (3,)))
    assert len(kv_index) == 0
    assert not kv_index.apply("w", frame(3, (4,)))
    assert kv_index.cached_tokens("w", names(4), 16) == 0
    assert kv_index.apply("w", frame(9, (7,), reset=True))
    assert kv_index.apply("w", frame(10, (8,)))
    assert kv_index.cached_tokens("w", names(7, 8), 16) == 32


def test_reset_replaces_the_resident_pages() -> None:
    kv_index = KvIndex(100)
    kv_index.apply("w", frame(0, (1, 2), reset=True))
    kv_index.apply("w", frame(1, (2,), reset=True))
    assert kv_index.cached_tokens("w", names(1), 16) == 0
    assert len(kv_index) == 1


def test_full_index_keeps_every_second_page_of_the_largest_worker() -> None:
    kv_index = KvIndex(40)
    kv_index.apply("a", frame(0, tuple(range(1, 31)), reset=True))
    kv_index.apply("b", frame(0, (99,), reset=True))
    kv_index.apply("a", frame(1, tuple(range(31, 61))))
    kv_index.check()
    assert kv_index.num_pages("a") == 30
    assert kv_index.cached_tokens("b", names(99), 16) == 16
    prompt = names(*range(1, 100))
    assert kv_index.cached_tokens("a", prompt, 1) == 60
    kv_index.apply("a", frame(2, (), tuple(range(51, 61))))
    assert kv_index.cached_tokens("a", prompt, 1) == 50
    kv_index.apply("a", frame(3, (), (50,)))
    assert kv_index.cached_tokens("a", prompt, 1) == 48


def test_bisection_finds_the_exact_length_of_a_long_prefix() -> None:
    for held in range(40):
        kv_index = KvIndex(100)
        kv_index.apply("w", frame(0, tuple(range(held)), reset=True))
        assert kv_index.cached_tokens("w", names(*range(40)), 1) == held


def test_holders_are_the_workers_with_most_of_a_prefix() -> None:
    rng = random.Random(2)
    for _ in range(200):
        kv_index = KvIndex(rng.choice((10_000, 150)))
        held = {f"w{number}": rng.randrange(50) for number in range(20)}
        for worker, pages in held.items():
            kv_index.apply(worker, frame(0, tuple(range(pages)), reset=True))
        kv_index.check()
        prompt, most = names(*range(50)), rng.randint(1, 25)
        found = kv_index.holders(prompt, most)
        known = {worker: kv_index.cached_tokens(worker, prompt, 1) for worker in held}
        assert all(known[worker] - 8 <= pages <= known[worker] <= held[worker] for worker, pages in found.items())
        left_out = [known[worker] for worker in held if worker not in found]
        assert len(found) >= most or max(left_out, default=0) < 8
        assert max(left_out, default=0) < min(found.values(), default=0) + 8


def test_repair_adds_cached_pages_and_drops_wrong_ones() -> None:
    kv_index = KvIndex(100)
    kv_index.apply("w", frame(0, (2, 3), reset=True))
    submitted_at = kv_index.sequence("w")
    kv_index.apply("w", frame(1, (4,)))
    kv_index.repair("w", names(1, 2, 3, 4), 32, page_size=16, since=submitted_at)
    kv_index.check()
    assert kv_index.cached_tokens("w", names(1, 2), 16) == 32
    assert kv_index.cached_tokens("w", names(3), 16) == 0  # claimed at submission, and was not there
    assert kv_index.cached_tokens("w", names(4), 16) == 16  # stored since
    kv_index.repair("gone", names(1), 16)


def test_random_walk_never_claims_pages_that_the_worker_lacks() -> None:
    rng = random.Random(7)
    kv_index, truth, sequence = KvIndex(60), {"a": set[int](), "b": set[int]()}, {"a": -1, "b": -1}
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
        known[worker] = kv_index.apply(worker, frame(sequence[worker], tuple(stored), tuple(removed), reset=reset))
        kv_index.check()
        for number in rng.sample(range(80), 10):
            if known[worker] and kv_index.cached_tokens(worker, names(number), 1):
                assert number in truth[worker]


@pytest.mark.parametrize("seed", range(4))
def test_lost_late_or_repeated_updates_never_claim_absent_pages(seed: int) -> None:
    """A worker's frames as they are, and a network that loses, delays and repeats them; a frame that is refused is answered by
    a resync in chunks, as after a reconnect."""
    rng, kv_index, held = random.Random(seed), KvIndex(200), dict[int, None]()
    sequence, sent, connected = 0, list[Cache](), False
    for step in range(3000):
        if not connected:  # everything in flight is gone with the link
            chunks = [tuple(held)[start : start + 7] for start in range(0, max(1, len(held)), 7)]
            sent = [frame(sequence + n, chunk, reset=n == 0) for n, chunk in enumerate(chunks)]
            sequence, connected = sequence + len(chunks), True
        else:
            stored = {rng.randrange(60) for _ in range(rng.randrange(4))} - held.keys()
            removed = set(rng.sample(sorted(held), min(len(held), rng.randrange(4))))
            for number in removed:
                del held[number]
            held |= dict.fromkeys(stored)
            sent.append(frame(sequence, tuple(stored), tuple(removed)))
            sequence += 1
        fate = rng.random()
        if fate < 0.02 and len(sent) > 1:
            sent[-2:] = sent[:-3:-1]  # the last two change places
        elif fate < 0.04:
            sent.append(sent[-1])
        elif fate < 0.06:
            sent.pop()
        while sent and rng.random() < 0.7:
            if not (connected := kv_index.apply("w", sent.pop(0))):
                assert len(kv_index) == 0
                break
            kv_index.check()
        if connected and not sent and kv_index.sequence("w") == sequence - 1:
            claimed = {number for number in range(60) if kv_index.cached_tokens("w", names(number), 1)}
            assert claimed == held.keys(), step
