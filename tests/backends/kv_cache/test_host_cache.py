"""The host tier under an engine: pages that the pool evicts return from the host."""

from array import array

import pytest

from backends.wire import Cache, Load, decode_up, page_hashes, split_hashes
from backends.worker.link_handler import Attach, LinkHandler, Outgoing
from tests.backends.engine.rig import Rig
from tests.backends.fakes import limits


def test_evicted_pages_return_from_the_host() -> None:
    rig = Rig(limits(num_pages=10, page_size=4), host_pages=40)
    prompts = [[number + 1] * 30 for number in range(3)]
    for turn in range(2):
        for number, prompt in enumerate(prompts):
            rig.submit(10 * turn + number, prompt, max_tokens=3, ignore_eos=True)
            rig.run()
            assert rig.finished[10 * turn + number].num_cached_tokens == (28 if turn else 0)
    assert all(rig.text[10 + number] == rig.text[number] for number in range(3))
    assert rig.engine.tier is not None and rig.engine.tier.num_loaded >= 14


def test_links_receive_host_pages_and_the_reload_rate() -> None:
    rig = Rig(limits(num_pages=10, page_size=4), host_pages=12)
    link_handler, told = LinkHandler(rig.engine), set[bytes]()
    assert rig.engine.tier is not None

    def take(outgoing: list[Outgoing]) -> list[Load]:
        loads = []
        for message in (message for out in outgoing for frame in out.frames for message in decode_up(frame)):
            if isinstance(message, Load):
                loads.append(message)
            elif isinstance(message, Cache):
                told.difference_update(split_hashes(message.host_removed))
                told.update(split_hashes(message.host_stored))
        return loads

    take(link_handler.take(Attach(1), 0))
    for number in range(5):
        rig.submit(number, [number + 1] * 30, max_tokens=3, ignore_eos=True)
        rig.run()
        loads = take(link_handler.report(number * 10**9))
        assert told == set(rig.engine.tier.page_hashes()) and len(told) == min(12, 8 * (number + 1))
    assert loads[-1].reload_s_per_token == pytest.approx(0.001)
    told.clear()
    take(link_handler.take(Attach(2), 0))
    assert told == set(rig.engine.tier.page_hashes())


def test_host_tier_keeps_parent_pages_longest() -> None:
    rig = Rig(limits(num_pages=20, page_size=4), host_pages=4)
    rig.submit(1, [5] * 17, max_tokens=1)
    rig.run()
    rig.submit(2, [6] * 9, max_tokens=1)
    rig.run()
    tier, names = rig.engine.tier, page_hashes(array("I", [5] * 17).tobytes(), page_size=4, fingerprint="fake", cache_salt="")
    assert tier is not None and tier.match(names) == 2


def host_rig(*chains: str, host_pages: int) -> tuple[Rig, dict[str, list[bytes]]]:
    """After one prompt of five pages for each chain, of tokens of its own; the device forgets all but the last ones."""
    rig, names = Rig(limits(num_pages=8, page_size=4), host_pages=host_pages), {}
    for number, chain in enumerate(chains):
        prompt = [number + 1] * 21
        rig.submit(number, prompt, max_tokens=1, chain=chain)
        rig.run()
        names[chain] = page_hashes(array("I", prompt).tobytes(), page_size=4, fingerprint="fake", cache_salt="")
    return rig, names


def test_host_tier_evicts_the_lowest_score_then_the_least_recently_used() -> None:
    rig, names = host_rig("a", "b", "c", host_pages=15)
    tier = rig.engine.tier
    assert tier is not None
    rig.engine.set_retention("a", 0.6)
    rig.engine.set_retention("b", 0.1)
    rig.engine.set_retention("c", 0.6)
    for request, (chain, left) in enumerate({"d": (5, 0, 5), "e": (0, 0, 5), "f": (0, 0, 0)}.items()):
        rig.submit(100 + request, [50 + request] * 21, max_tokens=1, chain=chain)
        rig.run()
        assert tuple(tier.match(names[name]) for name in "abc") == left
        tier.check()


def test_pages_shared_with_another_chain_stay() -> None:
    rig = Rig(limits(num_pages=8, page_size=4), host_pages=15)
    shared = [7] * 12
    for request, chain in enumerate("ab"):
        rig.submit(request, [*shared, *[20 + request] * 9], max_tokens=1, chain=chain)
        rig.run()
    tier = rig.engine.tier
    assert tier is not None and len(tier.page_hashes()) == 3 + 2 * 2
    rig.engine.set_retention("a", 0.0)
    assert len(tier.page_hashes()) == 3 + 2
    rig.engine.set_retention("b", 0.0)
    assert tier.page_hashes() == []
    tier.check()


def test_host_tier_evicts_first_the_pages_beyond_a_shortened_chain() -> None:
    rig, names = host_rig("a", host_pages=8)
    tier = rig.engine.tier
    assert tier is not None
    rig.submit(50, [*[1] * 8, *[9] * 13], max_tokens=1, chain="a")
    rig.run()
    rig.engine.set_retention("a", 0.5)
    rig.submit(51, [30] * 13, max_tokens=1, chain="b")
    rig.run()
    assert tier.match(names["a"]) == 2
    now = page_hashes(array("I", [*[1] * 8, *[9] * 13]).tobytes(), page_size=4, fingerprint="fake", cache_salt="")
    assert tier.match(now) == 5
