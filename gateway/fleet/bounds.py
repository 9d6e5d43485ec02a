"""The one table of bounds on numbers from workers and upstreams. Pure.

A worker's description or state out of range is refused with the name of the field. A count or time of a request beyond what was
sent, allowed or possible is cut to its bound, and the names of the cut fields are returned.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from backends import wire

MAX_COUNT = 2**48
"""Tokens and pages that no field may exceed. Sums of a million of them fit a signed 64-bit column of the ledger."""
MAX_CONTEXT = 2**31
MAX_SECONDS = 1e9
"""Seconds that no time may exceed: thirty years."""
CLOCK_TOLERANCE_S = 0.001
"""Seconds that a difference of clock readings may lie below zero."""
WALL_TOLERANCE_S, NOMINAL_STEP_S = 0.1, 0.001
"""Seconds by which a worker's times may exceed the wall time since the submit, and more for each token of its answer. Some
workers count steps of a nominal length; the smallest models take about a millisecond."""
MAX_NAME_CHARS, MAX_NAMES = 256, 64
"""Bounds on the labels of a `Hello`, which become labels of metrics."""
MAX_TOKEN_CHARS = 1_024
"""Characters of text of one token, on average over an answer. The longest tokens of public vocabularies have 128 to 512."""
PREAMBLE_TOKENS = 1_024
"""Prompt tokens that an upstream may add on its own. Vendors document up to 530 for tools."""


class Range(NamedTuple):
    """Both ends are valid."""

    low: float
    high: float


_COUNT, _TIME = Range(0, MAX_COUNT), Range(-CLOCK_TOLERANCE_S, MAX_SECONDS)
_SMALL = Range(1, 2**20)
_SHARE, _LOGPROB = Range(0, 1.001), Range(-math.inf, 0.001)
"""Above their limits by the rounding of float32."""
RANGES: Mapping[type[msgspec.Struct], Mapping[str, Range]] = {
    wire.Hello: {
        "protocol": _COUNT, "max_context": Range(1, MAX_CONTEXT), "page_size": _SMALL, "num_pages": Range(1, MAX_CONTEXT),
        "max_sequences": _SMALL, "eos_tokens": Range(0, 2**32 - 1),
    },
    wire.Load: {
        "running": _SMALL._replace(low=0), "waiting": _SMALL._replace(low=0), "free_pages": _COUNT, "cached_pages": _COUNT,
        "num_pages": Range(1, MAX_CONTEXT), "credit_sequences": _SMALL._replace(low=0), "credit_tokens": _COUNT,
        "busy_s": _TIME, "idle_s": _TIME, "attributed_s": _TIME, "step_cost": Range(-1, MAX_SECONDS),
        "reload_s_per_token": _TIME,
    },
    wire.Finished: {
        "num_prompt_tokens": Range(0, math.inf), "num_cached_tokens": Range(0, math.inf), "num_steps": Range(0, math.inf),
        "num_output_tokens": Range(0, math.inf), "mean_batch": Range(0, math.inf), "queue_s": _TIME, "prefill_s": _TIME,
        "decode_s": _TIME, "device_s": _TIME, "prefill_device_s": _TIME,
    },
    wire.Piece: {"num_tokens": _COUNT, "confidence": _SHARE},
    wire.TokenLogprob: {"logprob": _LOGPROB, "top": _LOGPROB},
    wire.Cache: {"sequence": _COUNT},
}  # fmt: skip
"""Absolute ranges by message and field. A value outside of them refuses the link. `cut_finished` bounds a request further."""


class OutOfRange(ValueError):
    """`field` of a message is outside of its range, such as `Hello.page_size`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class Sent(NamedTuple):
    """Facts of a submitted request that bound its report. `at` is in seconds of the monotonic clock."""

    prompt_tokens: int
    max_tokens: int
    at: float
    stop: tuple[str, ...] = ()


NOTHING_SENT = Sent(0, 0, 0.0)


class Usage(NamedTuple):
    """Token counts of one request."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def check(message: msgspec.Struct) -> None:
    """Raise OutOfRange if a number of the message is outside of its range. NaN is outside of every range."""
    kind = type(message)
    for name, (low, high) in RANGES[kind].items():
        for value in _numbers(getattr(message, name)):
            if not low <= value <= high:
                raise OutOfRange(
                    f"{kind.__name__}.{name}", f"is {_shown(value)}, out of range: it must be from {low:,g} to {high:,g}"
                )


def check_hello(hello: wire.Hello) -> None:
    """Raise OutOfRange unless all numbers and labels are in range."""
    check(hello)
    labels = {"model": hello.model, "fingerprint": hello.fingerprint, "device": hello.device, "gpu": hello.gpu}
    for name, text in labels.items() | {(f"kernels.{key[:20]}", key + value) for key, value in hello.kernels.items()}:
        if len(text) > MAX_NAME_CHARS or not text.isprintable():
            problem = f"has {len(text):,} characters: it must have at most {MAX_NAME_CHARS} printable ones"
            raise OutOfRange(f"Hello.{name}", problem)
    for name, values in (("kernels", hello.kernels), ("eos_tokens", hello.eos_tokens)):
        if len(values) > MAX_NAMES:
            raise OutOfRange(f"Hello.{name}", f"has {len(values):,} entries: it must have at most {MAX_NAMES}")


def check_load(load: wire.Load, hello: wire.Hello) -> None:
    """Raise OutOfRange unless all numbers are in range and fit the worker's `Hello`."""
    check(load)
    limits = {
        "credit_sequences": "max_sequences",
        "num_pages": "num_pages",
        "free_pages": "num_pages",
        "cached_pages": "num_pages",
    }
    for name, limit in limits.items():
        value, high = getattr(load, name), getattr(hello, limit)
        if value > high:
            raise OutOfRange(
                f"Load.{name}", f"is {value:,}, out of range: it must be at most {high:,}, the value of Hello.{limit}"
            )


def check_cache(cache: wire.Cache) -> None:
    """Raise OutOfRange unless the page hashes are whole and the sequence is in range."""
    check(cache)
    for name in ("stored", "removed", "host_stored", "host_removed"):
        if (size := len(getattr(cache, name))) % wire.PAGE_HASH_BYTES:
            raise OutOfRange(f"Cache.{name}", f"has {size:,} bytes: it must be a multiple of {wire.PAGE_HASH_BYTES}")


def cut_piece(piece: wire.Piece, *, tokens_left: int) -> wire.Piece:
    """Return a piece with at most `tokens_left` tokens. Raises OutOfRange for numbers or a length that no token has."""
    check(piece)
    for logprob in piece.logprobs:
        check(logprob)
    if len(piece.text) > MAX_TOKEN_CHARS * max(1, tokens_left):
        raise OutOfRange("Piece.text", f"has {len(piece.text):,} characters: it must have at most {MAX_TOKEN_CHARS:,} a token")
    return piece if piece.num_tokens <= tokens_left else structs.replace(piece, num_tokens=tokens_left)


def cut_finished(
    finished: wire.Finished, sent: Sent, *, now: float, max_sequences: int
) -> tuple[wire.Finished, tuple[str, ...]]:
    """Return the report cut to what the request allows, with the names of the fields that were cut. Raises OutOfRange.

    Tokens are bounded by what was sent, times by the wall time since the submit. A step computes at least one token.
    """
    check(finished)
    tolerance_s = WALL_TOLERANCE_S + NOMINAL_STEP_S * min(finished.num_output_tokens, sent.max_tokens)
    wall_s = max(0.0, now - sent.at) + tolerance_s
    most: dict[str, float] = {
        "num_prompt_tokens": sent.prompt_tokens,
        "num_cached_tokens": min(finished.num_prompt_tokens, sent.prompt_tokens),
        "num_output_tokens": sent.max_tokens,
        # A preempted sequence computes its tokens again. A nominal step takes a microsecond at least.
        "num_steps": max(sent.prompt_tokens + sent.max_tokens, int(wall_s * 1e6)),
        "mean_batch": max_sequences,
        "queue_s": wall_s,
        "prefill_s": wall_s,
        "decode_s": wall_s,
        "device_s": wall_s,
        "prefill_device_s": min(max(0.0, finished.device_s), wall_s),
    }
    # Splitting a step's time over its sequences rounds, and clocks differ by less than CLOCK_TOLERANCE_S: neither is a fault.
    over = tuple(name for name, high in most.items() if getattr(finished, name) > high * (1 + 1e-9) + 1e-9)
    wrong = (*over, *(name for name in most if getattr(finished, name) < 0))
    bounded = {name: _cut(getattr(finished, name), most[name]) for name in wrong}
    if finished.stop_text and finished.stop_text not in sent.stop:
        bounded["stop_text"], over = "", (*over, "stop_text")
    return (structs.replace(finished, **bounded) if bounded else finished), over


def cut_usage(usage: Usage, *, sent_bytes: int, context_tokens: int, max_tokens: int) -> tuple[Usage, tuple[str, ...]]:
    """Return an upstream's usage cut to what the request allows, with the names of the fields that were cut.

    A token of the prompt has at least one byte of the body that was sent, or belongs to the upstream's own preamble.
    """
    prompt = _cut(usage.prompt_tokens, min(sent_bytes + PREAMBLE_TOKENS, context_tokens))
    bounded = Usage(prompt, _cut(usage.cached_tokens, prompt), _cut(usage.output_tokens, max_tokens))
    return bounded, tuple(name for name in Usage._fields if getattr(usage, name) != getattr(bounded, name))


def _cut(value: Any, high: float) -> Any:
    return type(value)(max(0, min(value, high)))


def _numbers(value: Any) -> Iterator[float]:
    """Yield a field's number, or those of a tuple of numbers or of (text, number) pairs."""
    if not isinstance(value, tuple):
        yield value
        return
    for item in value:
        yield item[1] if isinstance(item, tuple) else item


def _shown(value: float) -> str:
    """Return a number in few characters."""
    return (
        f"{value:,}" if isinstance(value, int) and abs(value) < 10**24 else f"{value:g}" if isinstance(value, float) else "huge"
    )
