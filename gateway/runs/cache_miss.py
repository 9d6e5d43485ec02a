"""Why a turn did not find in the cache what its chain had sent before. Pure and bounded.

previous prompt  [ same | other ... ]        changed: the first place that differs, the part of the request that it lies in
this prompt      [ same | ...       ]        else what was the same was not resident where the turn ran: moved, or given up
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from gateway.request import Message

MAX_TURNS = 16
"""Reports that a chain keeps: about 4 KB, and where content is recorded as much again of what lies around changes."""
AROUND_CHARS = 40

MissReason = Literal[
    "hit",  # all that it shares with the turn before was resident, to the page
    "first_turn",  # nothing to compare with: it is the chain's first, or the last one was too long ago
    "changed",  # it does not begin with all that was sent before
    "moved",  # its pages are on another worker
    "not_resident",  # the worker has given them up
]


class PromptChange(NamedTuple):
    """A prompt against the one that its chain sent before, in tokens; `part` and what is around are where they part."""

    previous_tokens: int
    shared_tokens: int
    part: str = ""
    before: str = ""
    after: str = ""


class TurnReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`shared_tokens` are those that the prompt begins with as the turn before did, `missed_tokens` those of them that were
    computed again. Where it changed, `part` names what, from token `shared_tokens` on; `before` and `after` are the text there
    then and now, where content is recorded. `normalized` says what was taken out of the prompt or put in order before."""

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
    """What became of one turn. At least the last token of a prompt is always computed, and only whole pages are kept."""
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
    """What of a request character `at` of its rendered text belongs to: `system`, `tools`, `message N (role)` or `end`.

    What a template writes between two messages (a role, a call) belongs to the one behind; before the first message of a
    conversation it is the tool list, where there is one.
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
