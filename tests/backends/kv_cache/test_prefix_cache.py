"""Pages and the prefix index under random walks: nothing is lost, nothing is shared that must not be."""

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.kv_cache.page_pool import PagePool
from backends.kv_cache.prefix_cache import PageHasher, PrefixIndex
from backends.wire import page_hashes


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 9), st.text(max_size=5), st.integers(0, 40))
def test_page_hashes_one_by_one_equal_those_of_the_wire(ids: list[int], page_size: int, salt: str, shared: int) -> None:
    tokens = array("I", ids)
    page_hasher, names = PageHasher("weights", salt, shared // page_size), list[bytes]()
    for start in range(0, len(ids) - len(ids) % page_size, page_size):
        names.append(page_hasher.extend(names[-1] if names else b"", tokens[start : start + page_size].tobytes(), len(names)))
    named = {"page_size": page_size, "fingerprint": "weights", "shared_tokens": shared}
    assert names == page_hashes(tokens.tobytes(), cache_salt=salt, **named)  # type: ignore[arg-type]
    other = page_hashes(tokens.tobytes(), cache_salt=f"{salt}2", **named)  # type: ignore[arg-type]
    common = min(len(names), shared // page_size)
    assert names[:common] == other[:common] and not set(names[common:]) & set(other[common:])


@pytest.mark.parametrize("seed", range(10))
def test_a_pool_keeps_every_page_in_one_state(seed: int) -> None:
    rng, pool = random.Random(seed), PagePool(12)
    held: list[int] = []
    cached: set[int] = set()
    for _ in range(400):
        choice = rng.randrange(4)
        if choice == 0 and pool.num_free:
            held.append(pool.take())
        elif choice == 1 and held:
            page = held.pop(rng.randrange(len(held)))
            keep = rng.random() < 0.5
            if pool.give_back(page, keep=keep) and keep:
                cached.add(page)
        elif choice == 2 and (cached or held):
            page = rng.choice([*cached, *held])
            pool.hold(page)
            cached.discard(page)
            held.append(page)
        elif choice == 3 and cached:
            pool.forget(cached.pop())
        pool.check()
        assert (pool.num_used, pool.num_cached) == (len(set(held)), len(cached))


class Walker:
    """Sequences over a small alphabet that share prefixes, grow, and end."""

    def __init__(self, seed: int, num_pages: int) -> None:
        self.rng = random.Random(seed)
        self.index = PrefixIndex(PagePool(num_pages))
        self.sequences: list[tuple[list[bytes], list[int]]] = []
        self.resident: set[bytes] = set()

    def begin(self) -> None:
        page_hashes = [b"%d" % self.rng.randrange(2)]
        while self.rng.random() < 0.8:
            page_hashes.append(page_hashes[-1] + b"%d" % self.rng.randrange(2))
        matched = self.index.match(page_hashes)
        fresh = len(page_hashes) - len(matched)
        if fresh + self.index.cached_among(matched) > self.index.available:
            return
        chain = self.rng.choice(("", "a", "b", "c", "d", "e"))
        self.index.hold(matched, chain)
        pages = [*matched, *self.index.take(fresh)]
        for i in range(len(matched), len(page_hashes)):
            pages[i] = self.index.insert(page_hashes[i], page_hashes[i - 1] if i else b"", pages[i], chain)
        self.sequences.append((page_hashes, pages))

    def end(self) -> None:
        if self.sequences:
            _, pages = self.sequences.pop(self.rng.randrange(len(self.sequences)))
            self.index.give_back(pages)

    def settle(self) -> None:
        """What was reported, followed from the outside, is what is there."""
        self.index.check()
        stored, removed = self.index.take_changes()
        assert not self.resident & set(stored) and set(removed) <= self.resident
        self.resident = (self.resident - set(removed)) | set(stored)
        assert self.resident == set(self.index.page_hashes())
        for hashes, pages in self.sequences:
            assert self.index.match(hashes) == pages


@pytest.mark.parametrize("seed", range(15))
def test_an_index_survives_a_random_walk_and_reports_every_change(seed: int) -> None:
    walker = Walker(seed, num_pages=10 + seed)
    for _ in range(300):
        walker.rng.choice((walker.begin, walker.begin, walker.end))()
        if walker.rng.random() < 0.2:
            walker.index.set_retention(walker.rng.choice("abcde"), walker.rng.choice((0.0, 0.3, 1.0, 3.0)))
        walker.settle()
    while walker.sequences:
        walker.end()
        walker.settle()


def filled(index: PrefixIndex, name: bytes, chain: str, parent: bytes = b"") -> int:
    """A page that becomes resident and is let go of."""
    above = index.match([parent]) if parent else []
    index.hold(above, chain)
    page = index.insert(name, parent, index.take(1)[0], chain)
    index.give_back([*above, page])
    return page


def test_least_recently_used_page_is_evicted_first() -> None:
    index = PrefixIndex(PagePool(3))
    for name in (b"a", b"b", b"c"):
        filled(index, name, "")
    index.hold(index.match([b"a"]), "")
    index.give_back(index.match([b"a"]))
    filled(index, b"d", "")
    assert set(index.page_hashes()) == {b"a", b"c", b"d"}


def test_children_are_evicted_before_their_parents() -> None:
    index = PrefixIndex(PagePool(3))
    filled(index, b"a", "")
    filled(index, b"ab", "", b"a")
    filled(index, b"abc", "", b"ab")
    index.give_back(index.take(2))
    assert index.page_hashes() == [b"a"]


def test_chain_of_lower_score_is_evicted_first_and_of_score_zero_at_once() -> None:
    index = PrefixIndex(PagePool(3))
    filled(index, b"a", "keep")
    filled(index, b"b", "drop")
    filled(index, b"c", "plain")
    index.set_retention("keep", 5.0)
    index.set_retention("drop", 0.1)
    filled(index, b"d", "plain")
    assert set(index.page_hashes()) == {b"a", b"c", b"d"}
    index.set_retention("plain", 0.0)
    assert index.page_hashes() == [b"a"]
    index.check()


def turn(index: PrefixIndex, page_hashes: list[bytes], chain: str) -> None:
    """What is resident of it is used again, the rest is computed."""
    held = index.match(page_hashes)
    index.hold(held, chain)
    for number in range(len(held), len(page_hashes)):
        held.append(index.insert(page_hashes[number], page_hashes[number - 1] if number else b"", index.take(1)[0], chain))
    index.give_back(held)


def test_pages_that_a_turn_did_not_reuse_are_evicted_before_lower_scores() -> None:
    index = PrefixIndex(PagePool(7))
    turn(index, [b"s", b"t", b"old-1", b"old-2"], "a")
    filled(index, b"other", "other")
    index.set_retention("a", 0.8)
    index.set_retention("other", 0.1)
    turn(index, [b"s", b"t", b"new"], "a")
    index.check()
    filled(index, b"x", "x")
    filled(index, b"y", "x")
    assert {b"s", b"t", b"old-1", b"other", b"new"} <= set(index.page_hashes()) and b"old-2" not in index.page_hashes()
    filled(index, b"z", "x")
    assert b"old-1" not in index.page_hashes() and b"other" in index.page_hashes()
    index.check()


def test_side_requests_under_the_same_chain_evict_nothing_of_the_main_thread() -> None:
    index, main = PrefixIndex(PagePool(9)), [b"m1", b"m2", b"m3", b"m4"]
    turn(index, main, "session")
    turn(index, [b"m1", b"sub-1"], "session")  # of two turns while the main thread waits
    turn(index, [b"m1", b"sub-1", b"sub-2"], "session")
    turn(index, [b"title"], "session")
    filled(index, b"other", "other")
    index.set_retention("session", 0.8)
    index.set_retention("other", 0.5)
    for name in (b"x", b"y"):
        filled(index, name, "x")
        index.check()
    assert set(main) | {b"title"} <= set(index.page_hashes()) and b"other" not in index.page_hashes()


def test_released_chain_keeps_pages_that_another_shares() -> None:
    index = PrefixIndex(PagePool(4))
    filled(index, b"a", "one")
    filled(index, b"ab", "two", b"a")
    index.set_retention("one", 0.0)
    assert index.page_hashes() == [b"a", b"ab"]
    index.set_retention("two", 0.0)
    assert index.page_hashes() == []


def test_releasing_a_very_long_chain_does_not_recurse() -> None:
    index, parent, held = PrefixIndex(PagePool(5000)), b"", list[int]()
    for i in range(5000):
        name = b"%d" % i
        held.append(index.insert(name, parent, index.take(1)[0], "long"))
        parent = name
    index.set_retention("long", 0.0)
    assert len(index.page_hashes()) == 5000
    index.give_back(held)
    assert index.page_hashes() == [] and index.available == 5000
