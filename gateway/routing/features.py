"""Features of a conversation for the quality model: hashed binary features of structure, hashed n-grams and some scalars.

System text is excluded: it identifies the speaker, not the difficulty of the request. Cost is bounded for any length:
n-grams come from the two ends of the text, counts from two larger ends, and only the length from all of it.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from gateway.request import Message, Tool
from gateway.routing.conversation_features import structure_names, structure_scalars

VERSION = 2
DEFAULT_BITS = 14
NUM_SCALARS = 28
_END_WORDS = 64
_END_CHARS = 900
_COUNTED_CHARS = 12_000
"""Characters used at each end of a longer text: _END_CHARS for n-grams, _COUNTED_CHARS for counts."""

_WORD = re.compile(rb"0+|[a-z\x80-\xff]+|[^\sa-z0-9\x80-\xff]")
_NUMBER = re.compile(rb"\d+")
_SENTENCE_END = re.compile(rb"[.?!:]\s+|\n+")
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_SIGNS = tuple(bytes([sign]) for sign in b",.;:=?|\n\"'(){}+-*/%")
_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MATHS = b"+-*/=%^<>\\"
_CODE = b"{}()[];_`#"
_NOT_ASCII = bytes(range(128, 256))


class Features(NamedTuple):
    """`structure` and `ngrams` are distinct indices below 2**bits. An n-gram weighs 1 / sqrt(number of n-grams). `scalars`
    are NUM_SCALARS numbers of order one."""

    structure: list[int]
    ngrams: list[int]
    scalars: list[float]


def features(messages: Sequence[Message], tools: Sequence[Tool], *, bits: int = DEFAULT_BITS) -> Features:
    text = next((message.content for message in reversed(messages) if message.role == "user"), "")
    counted = _ends(text, _COUNTED_CHARS).encode(errors="replace")
    ends = _ends(text, _END_CHARS).encode(errors="replace")
    lowered = ends.lower().translate(_DIGITS_TO_ZERO)
    tokens = _WORD.findall(lowered)
    if len(tokens) > 2 * _END_WORDS:
        tokens = tokens[:_END_WORDS] + tokens[-_END_WORDS:]
    numbers = _NUMBER.findall(ends)
    pairs = list(pairwise(tokens))
    mask = (1 << bits) - 1
    hashes = list(map(crc32, tokens))
    ngrams = set(hashes)
    ngrams.update(map(crc32, tokens[1:], hashes))
    total = sum([len(message.content) for message in messages if message.role != "system"])
    shape = structure_names(messages, tools)
    sizes = _sizes(counted, tokens, pairs, numbers)
    sizes.append(b"chars=%d" % round(2 * math.log2(total + 1)))
    marks = list(map(crc32, _marks(counted, ends, lowered, tokens)))
    structure = [*map(crc32, shape), *map(crc32, sizes), *marks]
    structure += [crc32(size, mark) for mark in marks for size in sizes]
    structure += [crc32(part, marks[0]) for part in shape]
    return Features(
        list({value & mask for value in structure}),
        list({value & mask for value in ngrams}),
        [*_scalars(text, counted, tokens, pairs, numbers), *structure_scalars(messages, tools, total)],
    )


def _ends(text: str, chars: int) -> str:
    return text if len(text) <= 2 * chars else f"{text[:chars]} \n {text[-chars:]}"


def _marks(counted: bytes, ends: bytes, lowered: bytes, tokens: Sequence[bytes]) -> list[bytes]:
    """Return features that identify the type of request: the first words of the text and of its last sentence, the words
    before its last colon, its signs, and its last words."""
    last = next((part for part in reversed(_SENTENCE_END.split(lowered)) if part.strip()), b"")
    colon = lowered.rfind(b": ")
    return [
        b"open " + b" ".join(tokens[:2]),
        b"ask " + b" ".join(_WORD.findall(last[:40])[:2]),
        b"colon " + b" ".join(_WORD.findall(lowered[max(0, colon - 40) : colon])[-2:]) if colon >= 0 else b"",
        b"signs " + b"".join([sign for sign in _SIGNS if sign in counted]),
        b"close " + b" ".join(tokens[-2:]),
    ]


def _sizes(
    counted: bytes, tokens: Sequence[bytes], pairs: Sequence[tuple[bytes, bytes]], numbers: Sequence[bytes]
) -> list[bytes]:
    """Return counts in fine buckets."""
    sizes = [b"words=%d" % bucket(counted.count(b" ") + counted.count(b"\n") + 1)]
    sizes += [b"n%b=%d" % (sign, bucket(number)) for sign in (b",", b".", b"=", b"\n") if (number := counted.count(sign))]
    sizes.append(b"numbers=%d" % bucket(len(numbers)))
    if numbers:
        sizes.append(b"digits=%d" % max(map(len, numbers)))
        if len(numbers) <= 4:
            sizes.append(b"lengths=" + b",".join([b"%d" % min(len(number), 9) for number in numbers]))
            if len(numbers) > 1:
                sizes.append(b"columns=%d/%d" % _columns(numbers[-2], numbers[-1]))
    distinct = len(set(tokens))
    sizes.append(b"distinct=%d" % bucket(distinct))
    sizes.append(b"repeated=%d" % bucket(len(tokens) - distinct))
    sizes.append(b"phrases=%d" % bucket(len(pairs) - len(set(pairs))))
    return sizes


def _columns(a: bytes, b: bytes) -> tuple[int, int]:
    """Return the number of columns that carry when two numbers are added, and that borrow when the smaller is subtracted."""
    first, second = int(a[-12:]), int(b[-12:])
    large, small = max(first, second), min(first, second)
    carries = borrows = carry = borrow = 0
    while large or small:
        large, x = divmod(large, 10)
        small, y = divmod(small, 10)
        carry = x + y + carry >= 10
        borrow = x - y - borrow < 0
        carries += carry
        borrows += borrow
    return carries, borrows


def _scalars(
    text: str, counted: bytes, tokens: Sequence[bytes], pairs: Sequence[tuple[bytes, bytes]], numbers: Sequence[bytes]
) -> list[float]:
    """Return length, repetition and density of numbers, signs, names and code of the last user message."""
    size = len(counted) + 1
    num_tokens = len(tokens) + 1
    log = math.log1p
    return [
        log(len(text)) / 4,
        log(counted.count(b" ")) / 4,
        log(counted.count(b". ") + counted.count(b"? ") + counted.count(b"\n")) / 2,
        log(counted.count(b"\n")) / 2,
        log(counted.count(b",")) / 2,
        log(counted.count(b"?")),
        log(counted.count(b"$")),
        log(counted.count(b"%")),
        log(len(numbers)) / 2,
        sum(map(len, numbers)) / num_tokens,
        max(map(len, numbers), default=0) / 4,
        log(len(set(numbers))) / 2,
        log(_without(counted, _MATHS)) / 2,
        log(_without(counted, _CODE)) / 2,
        10 * _without(counted, _UPPER) / size,
        10 * _without(counted, _NOT_ASCII) / size,
        len(set(tokens)) / num_tokens,
        len(set(pairs)) / num_tokens,
        size / (5 * num_tokens) if len(text) <= 2 * _END_CHARS else 1.0,
        max(map(len, tokens), default=0) / 10,
    ]


def _without(text: bytes, signs: bytes) -> int:
    """Return the number of characters of `text` that are in `signs`."""
    return len(text) - len(text.translate(None, signs))


def bucket(number: int) -> int:
    """Return a bucket: exact up to 12, then six buckets per octave."""
    return number if number <= 12 else 100 + round(6 * math.log2(number))
