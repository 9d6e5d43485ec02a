"""What a conversation looks like, as hashed yes/no features: what is asked (n-grams of the last user message), how large it is
(fine buckets of counts), both together, and where the conversation stands.

System text is left out: it says who speaks, not how hard the question is. Cost is bounded: n-grams come from the head and the
tail of a long text, and only counting sees all of it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from zlib import crc32

from gateway.request import Message, Tool

VERSION = 1
DEFAULT_BITS = 15
_HEAD_WORDS, _TAIL_WORDS = 64, 64
_HEAD_CHARS, _TAIL_CHARS = 900, 900
"""Longer texts are cut to these two ends before anything but counting."""

_WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s]")
_NUMBER = re.compile(r"\d+")
_SENTENCE_END = re.compile(r"[.?!:]\s+|\n+")
_COUNTED = ",.;:=?|\n\"'(){}+-*/%"


def features(messages: Sequence[Message], tools: Sequence[Tool], *, bits: int = DEFAULT_BITS) -> list[int]:
    """Distinct indices below 2**bits, sorted. N-grams have the upper half to themselves: a model trusts them less."""
    half = 1 << (bits - 1)
    structure, ngrams = feature_names(messages, tools)
    found = {crc32(name.encode()) % half for name in structure}
    found.update(half + crc32(name.encode()) % half for name in ngrams)
    return sorted(found)


def feature_names(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[str], list[str]]:
    """(structure, n-grams) before hashing, with repeats."""
    text = next((message.content for message in reversed(messages) if message.role == "user"), "")
    ends = _two_ends(text)
    tokens = _tokens(ends)
    shape = _shape(messages, tools)
    total = sum(len(message.content) for message in messages if message.role != "system")
    sizes = [*_sizes(text, ends, tokens), f"chars={_log_bucket(total)}"]
    marks = _marks(text, ends, tokens)
    structure = ["bias", *shape, *sizes, *marks]
    structure += [f"{mark}&{size}" for mark in marks for size in sizes]
    structure += [f"{marks[0]}&{part}" for part in shape]
    return structure, [*tokens, *(f"{a} {b}" for a, b in pairwise(tokens))]


def _two_ends(text: str) -> str:
    return text if len(text) <= _HEAD_CHARS + _TAIL_CHARS else f"{text[:_HEAD_CHARS]} \n {text[-_TAIL_CHARS:]}"


def _tokens(text: str) -> list[str]:
    """Words in lower case and single signs, of the two ends when they are many; digits keep only their number."""
    found: list[str] = _WORD.findall(text.lower())
    if len(found) > _HEAD_WORDS + _TAIL_WORDS:
        found = found[:_HEAD_WORDS] + found[-_TAIL_WORDS:]
    return ["0" * len(word) if word.isdigit() else word for word in found]


def _marks(text: str, ends: str, tokens: Sequence[str]) -> list[str]:
    """What tells one kind of request from another: how it opens, how its last sentence opens, what precedes its last
    colon, which signs it has, and how it ends."""
    marks = ["open " + " ".join(tokens[:2])]
    last = next((part for part in reversed(_SENTENCE_END.split(ends)) if part.strip()), "")
    marks.append("ask " + " ".join(_tokens(last[:40])[:2]))
    if (colon := ends.rfind(": ")) >= 0:
        marks.append("colon " + " ".join(_tokens(ends[max(0, colon - 40) : colon])[-2:]))
    marks.append("signs " + "".join(sign for sign in _COUNTED if sign in text))
    marks.append("close " + " ".join(tokens[-2:]))
    return marks


def _sizes(text: str, ends: str, tokens: Sequence[str]) -> Iterator[str]:
    yield f"words={_count_bucket(text.count(' ') + text.count(chr(10)) + 1)}"
    for sign in ",.=\n":
        if number := text.count(sign):
            yield f"n{sign!r}={_count_bucket(number)}"
    numbers = _NUMBER.findall(ends)
    yield f"numbers={_count_bucket(len(numbers))}"
    if numbers:
        yield f"digits={max(map(len, numbers))}"
        if len(numbers) <= 4:
            yield "lengths=" + ",".join(str(min(len(number), 9)) for number in numbers)
            yield from _carries(numbers)
    distinct = len(set(tokens))
    pairs = list(pairwise(tokens))
    yield f"distinct={_count_bucket(distinct)}"
    yield f"repeated={_count_bucket(len(tokens) - distinct)}"
    yield f"phrases={_count_bucket(len(pairs) - len(set(pairs)))}"


def _carries(numbers: Sequence[str]) -> Iterator[str]:
    """How many columns carry when the last two numbers are added, and borrow when the smaller is taken from the larger."""
    if len(numbers) < 2:
        return
    a, b = int(numbers[-2][-12:]), int(numbers[-1][-12:])
    large, small = max(a, b), min(a, b)
    carries = borrows = carry = borrow = 0
    while large or small:
        large, x = divmod(large, 10)
        small, y = divmod(small, 10)
        carry = x + y + carry >= 10
        borrow = x - y - borrow < 0
        carries += carry
        borrows += borrow
    yield f"carries={carries}"
    yield f"borrows={borrows}"


def _shape(messages: Sequence[Message], tools: Sequence[Tool]) -> list[str]:
    """Where the conversation stands: turns, the tool loop, the tools on offer."""
    roles = [message.role for message in messages]
    last_user = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
    results = f"results={_count_bucket(roles[last_user + 1 :].count('tool'))}"
    offered = f"tools={_count_bucket(len(tools))}"
    properties = sum(map(_num_properties, tools))
    return [
        f"last={roles[-1] if roles else 'none'}",
        f"turns={_count_bucket(roles.count('user'))}",
        results,
        offered,
        f"{offered}&{results}",
        f"properties={_count_bucket(properties)}",
    ]


def _num_properties(tool: Tool) -> int:
    """None where the schema is no schema: what a client sends there is up to the model's template."""
    properties = (tool.parameters or {}).get("properties")
    return len(properties) if isinstance(properties, dict) else 0


def _count_bucket(number: int) -> str:
    """Exact up to 12, then six buckets an octave."""
    return str(number) if number <= 12 else f"~{round(6 * math.log2(number))}"


def _log_bucket(number: int) -> str:
    """Two buckets an octave."""
    return f"~{round(2 * math.log2(number + 1))}"
