"""Limits of requests on one worker, and the refusals of requests beyond them."""

from array import array
from typing import NamedTuple

from backends.wire import Sampling, Submit

MAX_TOP_LOGPROBS = 20


class RequestLimits(NamedTuple):
    """`max_context` counts prompt and output tokens of one sequence. `kv_bytes` are the KV bytes of one token."""

    max_context: int
    vocab_size: int
    num_pages: int
    page_size: int
    max_sequences: int
    prefill_tokens: int
    eos_tokens: frozenset[int]
    kv_bytes: int
    fingerprint: str

    @property
    def longest(self) -> int:
        """Return the largest number of tokens of one sequence."""
        return min(self.max_context, self.num_pages * self.page_size)


class Refusal(NamedTuple):
    """`param` is the request field at fault, or empty."""

    code: str
    message: str
    param: str = ""


def refusal(submit: Submit, limits: RequestLimits, *, waiting: int) -> Refusal | None:
    """Return None if the request fits the limits.

    Up to `max_sequences` may wait, to allow for requests that were in transit when a Load was sent.
    """
    problem = _sampling_problem(submit.sampling)
    if problem:
        return Refusal("bad_sampling", problem)
    out_of_range = [token for token, _ in submit.sampling.logit_bias if not 0 <= token < limits.vocab_size]
    if out_of_range:
        message = f"logit_bias: {out_of_range[0]} is outside of this model's vocabulary of {limits.vocab_size:,}"
        return Refusal("bad_sampling", message, "logit_bias")
    count, longest = len(submit.prompt) // 4, limits.longest
    if not count or len(submit.prompt) % 4:
        return Refusal("bad_prompt", f"a prompt is one or more uint32 token ids, this one has {len(submit.prompt)} bytes")
    if count >= longest:
        capacity = f"{limits.num_pages} pages of {limits.page_size} and a context of {limits.max_context:,}"
        return Refusal("too_long", f"prompt has {count:,} tokens, the worker takes {longest - 1:,} ({capacity})")
    if max(array("I", submit.prompt)) >= limits.vocab_size:
        return Refusal("bad_prompt", f"the prompt has token ids outside of the vocabulary of {limits.vocab_size:,}")
    if waiting >= limits.max_sequences:
        return Refusal("too_many", f"{waiting} sequences already wait: keep to the credits of Load")
    return None


def _sampling_problem(sampling: Sampling) -> str:
    if sampling.max_tokens < 1:
        return f"max_tokens is {sampling.max_tokens}: it must be at least 1"
    if not 0 <= sampling.temperature < float("inf"):
        return f"temperature is {sampling.temperature}: it must not be negative"
    if not 0 < sampling.top_p <= 1:
        return f"top_p is {sampling.top_p}: it must be above 0 and at most 1"
    if sampling.top_k < 0:
        return f"top_k is {sampling.top_k}: it must not be negative"
    if not 0 <= (sampling.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
        return f"top_logprobs is {sampling.top_logprobs}: it must be from 0 to {MAX_TOP_LOGPROBS}"
    return ""
