"""When a stream begins, and whom it wakes."""

import asyncio
from collections.abc import Callable

import pytest

from backends.wire import Finished, FinishReason, Piece
from gateway.fleet.token_stream import TokenStream


def stream(heard: list[str] | None = None) -> TokenStream:
    made = TokenStream("w", 1, lambda request: None)
    if heard is not None:
        made.on_first = lambda: heard.append("first")
        made.on_begun = lambda: heard.append("begun")
        made.on_finished = lambda finished: heard.append(finished.reason)
    return made


def piece(text: str = "a", confidence: float = 1.0) -> Piece:
    return Piece(1, text, 1, (), confidence)


def end(reason: FinishReason = "stop") -> Finished:
    return Finished(request=1, reason=reason)


async def wakes(wait: Callable[[], object]) -> bool:
    """Whether what waits goes on when the loop has turned."""
    for _ in range(3):
        await asyncio.sleep(0)
    return bool(wait())


async def test_stream_begins_with_its_first_piece() -> None:
    heard: list[str] = []
    one = stream(heard)
    waiting = asyncio.create_task(one.wait_begun())
    await asyncio.sleep(0)
    one.push(piece())
    assert one.begun and heard == ["first", "begun"]
    await waiting
    one.push(piece())
    one.end(end())
    assert heard == ["first", "begun", "stop"]


async def test_held_back_stream_begins_after_its_holdback_tokens() -> None:
    heard: list[str] = []
    one = stream(heard)
    one.hold_back(3, 0.5)
    waiting = asyncio.create_task(one.wait_begun())
    for confidence in (0.9, 0.6):
        one.push(piece(confidence=confidence))
    assert not await wakes(waiting.done) and heard == ["first"]
    one.push(piece(confidence=0.8))
    await waiting
    assert heard == ["first", "begun"] and one.confidence == 0.6 and not one.is_doubtful
    one.push(piece(confidence=0.1))  # it was let go
    assert not one.is_doubtful


@pytest.mark.parametrize("only_end", [True, False])
async def test_doubt_wakes_a_reader_that_waits_for_the_end(only_end: bool) -> None:
    one = stream()
    one.hold_back(10, 0.5)
    waiting = asyncio.create_task(one.wait_end() if only_end else one.wait_begun())
    await asyncio.sleep(0)
    one.push(piece(confidence=0.9))
    assert not await wakes(waiting.done)
    one.push(piece(confidence=0.4))
    await waiting
    assert one.is_doubtful and one.confidence == 0.4


async def test_reader_that_waits_for_the_end_is_not_woken_by_pieces() -> None:
    heard: list[str] = []
    one = stream(heard)
    waiting = asyncio.create_task(one.wait_end())
    await asyncio.sleep(0)
    for _ in range(3):
        one.push(piece())
    assert not await wakes(waiting.done) and heard == ["first", "begun"]
    one.end(end())
    await waiting
    assert len(one.take()) == 3


@pytest.mark.parametrize(("reason", "begins"), [("stop", True), ("length", True), ("error", False), ("abort", False)])
async def test_confident_end_releases_the_held_back_pieces(reason: FinishReason, begins: bool) -> None:
    heard: list[str] = []
    one = stream(heard)
    one.hold_back(10, 0.5)
    one.push(piece())
    one.end(end(reason))
    assert one.begun == begins
    assert heard == ["first", *(["begun"] if begins else []), reason]


async def test_an_end_without_a_piece_begins_nothing() -> None:
    heard: list[str] = []
    one = stream(heard)
    one.end(end())
    await one.wait_end()
    assert heard == ["stop"] and not one.begun


async def test_reader_is_woken_at_a_bounded_rate_within_an_answer() -> None:
    one = stream()
    one.push(piece())
    one.take()
    for text in ("b", "c"):
        waiting = asyncio.create_task(one.wait())
        await asyncio.sleep(0)
        one.push(piece(text))
        one.push(piece("+"))
        assert await wakes(waiting.done) == (text == "b"), "the second comes too soon after the first"
        await waiting
        assert [taken.text for taken in one.take()] == [text, "+"]
    waiting = asyncio.create_task(one.wait())
    await asyncio.sleep(0)
    one.push(piece("d"))
    one.end(end())
    assert await wakes(waiting.done), "the end waits for nothing"
