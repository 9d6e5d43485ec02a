"""Reason why a turn missed cached tokens of its chain's previous prompt. Pure and bounded.

previous prompt  [ same | other ... ]        changed: the part of the request that holds the first difference
this prompt      [ same | ...       ]        else the shared part was not resident on the turn's worker: moved, or evicted
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from gateway.request import Message

MAX_TURNS = 16
"""Reports kept for a chain: about 4 KB, and as much again for the text around changes if content is recorded."""
AROUND_CHARS = 40

MissReason = Literal[
    "hit",  # all full pages shared with the previous turn were resident
    "first_turn",  # no prompt to compare with: the chain's first turn, or the previous one was too long ago
    "changed",  # the prompt does not begin with the whole previous prompt
    "moved",  # the chain's pages are on another worker
    "not_resident",  # the worker has evicted the pages
]


class PromptChange(NamedTuple):
    """Comparison of a prompt with its chain's previous one, in tokens. `part`, `before` and `after` describe the first
    difference."""

    previous_tokens: int
    shared_tokens: int
    part: str = ""
    before: str = ""
    after: str = ""


class TurnReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Cache result of one turn. `shared_tokens` is the common prefix with the previous turn; `missed_tokens` of it were
    computed again. `part` names the part of a changed prompt that holds token `shared_tokens`. `before` and `after` are the
    old and new text there, if content is recorded. `normalized` lists what normalization removed or reordered."""

    turn: int
    worker: str
    why: MissReason
    prompt_tokens: int
    cached_tokens: int
    shared_tokens: int = 0
    missed_tokens: int = 0
    part: str = ""
    before: str = ""
    after: str = ""
    normalized: tuple[str, ...] = ()


def report(
    change: PromptChange | None,
    *,
    turn: int,
    worker: str,
    previous_worker: str | None,
    prompt_tokens: int,
    cached_tokens: int,
    page_size: int,
    normalized: tuple[str, ...] = (),
) -> TurnReport:
    """Return the report of one turn. The last token of a prompt is always computed, and only whole pages are cached."""
    if change is None:
        return TurnReport(
            turn=turn,
            worker=worker,
            why="first_turn",
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            normalized=normalized,
        )
    reusable = min(change.shared_tokens, prompt_tokens - 1) // page_size * page_size
    missed = max(0, reusable - cached_tokens)
    why: MissReason = "hit"
    if change.previous_tokens - change.shared_tokens >= page_size:
        why = "changed"
    elif missed:
        why = "not_resident" if previous_worker in (None, worker) else "moved"
    changed = change if why == "changed" else PromptChange(0, 0)
    return TurnReport(
        turn=turn,
        worker=worker,
        why=why,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        shared_tokens=change.shared_tokens,
        missed_tokens=missed,
        part=changed.part,
        before=changed.before,
        after=changed.after,
        normalized=normalized,
    )


def part_at(text: str, at: int, messages: Sequence[Message], *, has_tools: bool) -> str:
    """Return the part of a request that character `at` of its text lies in: `system`, `tools`, `message N (role)` or `end`.

    Template text between two messages (a role, a call) belongs to the later one. Text before the first non-system message is
    the tool list, if there is one.
    """
    position = 0
    for number, message in enumerate(messages):
        content = message.content.strip()
        start = text.find(content, position) if content else -1
        if start < 0:
            continue
        end = start + len(content)
        is_first = not any(earlier.role != "system" for earlier in messages[:number])
        if at < start and has_tools and is_first:
            return "tools"
        if at < end:
            return "system" if message.role == "system" else f"message {number} ({message.role})"
        position = end
    return "end"


def around(text: str, at: int) -> str:
    return text[max(0, at - AROUND_CHARS) : at + AROUND_CHARS]
