"""One exercise of the curriculum, how its answer is checked, and which side of the train/held-out split it is on.

The split is a hash of what is asked (not of how it is worded), so no instance is ever on both sides.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
Side = Literal["train", "held-out"]
LEVELS = (1, 2, 3, 4)
"""Levels 1 and 2 are the easy half, 3 and 4 the hard half."""

HELD_OUT_SHARE = 16
"""One key in this many is held out."""


@dataclass(slots=True)
class Instance:
    """A conversation in OpenAI's message format whose assistant messages are the reference answers.

    `key` holds everything that the answer depends on; `tools` are OpenAI function schemas.
    """

    skill: str
    level: int
    key: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)

    def side(self) -> Side:
        digest = hashlib.blake2b(f"{self.skill}/{self.key}".encode(), digest_size=8).digest()
        return "held-out" if int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0 else "train"


Skill = Callable[[random.Random, int], Instance]


def ask(skill: str, level: int, key: object, question: str, answer: object) -> Instance:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": str(answer)}]
    return Instance(skill, level, str(key), messages)


def is_hard(level: int) -> bool:
    return level >= 3


def agrees(message: Message, reference: Message) -> bool:
    """Whether an answer (content or tool calls) is the reference: text up to outer blanks, arguments as JSON values."""
    calls, expected = _calls(message), _calls(reference)
    if calls or expected:
        return calls == expected
    return str(message.get("content") or "").strip() == str(reference["content"]).strip()


def _calls(message: Message) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return [(f["name"], _arguments(f["arguments"])) for f in functions]


def _arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return arguments
