"""So many go on in a round of the event loop, in order; who is told no does not take their place."""

import asyncio

import pytest

from gateway.pipeline.tokenize_limiter import TokenizeLimiter


class No(Exception):
    pass


def yes() -> None:
    """Nothing against it."""


def no() -> None:
    raise No


async def test_so_many_go_on_in_a_round_in_the_order_in_which_they_came() -> None:
    pace, gone, rounds = TokenizeLimiter(read_a_round=2), list[tuple[int, int]](), 0

    async def go(number: int) -> None:
        await pace.turn(yes)
        gone.append((number, rounds))

    tasks = [asyncio.create_task(go(number)) for number in range(7)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        rounds += 1
    assert [number for number, _ in gone] == list(range(7))
    per_round = [sum(when == one for _, when in gone) for one in range(rounds + 1)]
    assert max(per_round) == 2
    await pace.turn(yes)  # nobody waits: at once


async def test_who_is_told_no_is_told_at_once_and_whoever_comes_after_goes_on() -> None:
    pace, refused = TokenizeLimiter(read_a_round=1), False

    def unless_refused() -> None:
        if refused:
            raise No

    first, others = pace.turn(yes), [asyncio.create_task(pace.turn(unless_refused)) for _ in range(50)]
    await first
    with pytest.raises(No):
        await pace.turn(no)
    await asyncio.sleep(0)
    refused = True
    last = asyncio.create_task(pace.turn(yes))
    for _ in range(10):
        await asyncio.sleep(0)
    assert last.done() and all(task.done() for task in others)
    assert sum(isinstance(task.exception(), No) for task in others) >= 45


async def test_who_left_takes_nobodys_turn() -> None:
    pace = TokenizeLimiter(read_a_round=1)
    await pace.turn(yes)
    left = [asyncio.create_task(pace.turn(yes)) for _ in range(3)]
    last = asyncio.create_task(pace.turn(yes))
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    for _ in range(4):
        await asyncio.sleep(0)
    assert last.done() and not last.exception()


async def test_turns_of_runs_go_before_the_rest() -> None:
    pace, gone = TokenizeLimiter(read_a_round=1), list[str]()

    async def go(name: str, *, first: bool) -> None:
        await pace.turn(yes, first=first)
        gone.append(name)

    names = ("new 1", "new 2", "turn 1", "new 3", "turn 2")
    await asyncio.gather(*(go(name, first=name.startswith("turn")) for name in names))
    assert gone == ["new 1", "turn 1", "turn 2", "new 2", "new 3"]


async def test_tenants_take_turns() -> None:
    pace, gone = TokenizeLimiter(read_a_round=1), list[str]()

    async def go(name: str) -> None:
        await pace.turn(yes, tenant=name[0])
        gone.append(name)

    await asyncio.gather(*map(go, ("a1", "a2", "a3", "a4", "b1", "a5", "b2", "c1")))
    assert gone == ["a1", "a2", "b1", "c1", "a3", "b2", "a4", "a5"]
