"""Why a turn missed the cache: the report says where, and whose doing it was."""

from typing import Any

import pytest

from gateway.request import Message
from gateway.runs.cache_miss import PromptChange, TurnReport, part_at, report

TURN: dict[str, Any] = {"turn": 3, "worker": "a", "previous_worker": "a", "prompt_tokens": 1000, "page_size": 16}


def told(change: PromptChange | None, cached: int, **changes: Any) -> TurnReport:
    return report(change, cached_tokens=cached, **(TURN | changes))


def test_grown_chain_on_its_worker_is_a_hit() -> None:
    assert told(PromptChange(810, 810), 800).why == "hit"
    assert told(PromptChange(1000, 1000), 992).why == "hit"  # sent again: its last token is computed
    assert told(None, 0).why == "first_turn"


def test_evicted_pages_differ_from_pages_on_another_worker() -> None:
    given_up = told(PromptChange(810, 810), 320)
    assert (given_up.why, given_up.missed_tokens, given_up.part) == ("not_resident", 480, "")
    assert told(PromptChange(810, 810), 0, previous_worker="b").why == "moved"
    assert told(PromptChange(810, 810), 0, previous_worker=None).why == "not_resident"  # it was lost meanwhile


def test_changed_text_is_reported_with_its_position() -> None:
    changed = told(PromptChange(810, 100, "message 1 (user)", "at 9:15", "at 9:16"), 96)
    assert (changed.why, changed.shared_tokens, changed.missed_tokens) == ("changed", 100, 0)
    assert (changed.part, changed.before, changed.after) == ("message 1 (user)", "at 9:15", "at 9:16")
    assert told(PromptChange(810, 805, "end"), 800).why == "hit"  # less than a page is never kept


MESSAGES = (
    Message(role="system", content="Be brief. "),
    Message(role="user", content="one"),
    Message(role="assistant", content="two"),
    Message(role="user", content="one"),
)
TEXT = "<s>Be brief.<tools>[]</tools><u>one<a>two<u>one<a>"


@pytest.mark.parametrize(
    ("at", "part"),
    [
        ("Be", "system"),
        ("rief", "system"),
        ("[]", "tools"),
        ("one<a>two", "message 1 (user)"),
        ("two", "message 2 (assistant)"),
        ("u>one<a>\0", "message 3 (user)"),
        ("<a>\0", "end"),
    ],
)
def test_reported_part_contains_the_position(at: str, part: str) -> None:
    assert part_at(TEXT, (TEXT + "\0").index(at), MESSAGES, has_tools=True) == part
    if part != "tools":
        assert part_at(TEXT, (TEXT + "\0").index(at), MESSAGES, has_tools=False) == part
