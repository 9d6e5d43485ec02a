"""One request inside the engine. Only `Engine._commit` and the end of the request change tokens; only the scheduler moves
pages.

tokens   [ prompt ................ | output ... ]
KV       [ computed ......... ) to come ........ ]
pages    [ hashed: full, in the prefix index | own, being filled ]
"""

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from backends.engine.detokenizer import Detokenizer
from backends.engine.stop import StopFilter
from backends.kv_cache.prefix_cache import PageHasher
from backends.spec_decode.state import Drafted, Guesses
from backends.wire import FinishReason, Sampling, TokenLogprob


class Matcher(Protocol):
    """State of one sequence in its grammar, over a vocabulary of `vocab_size` tokens."""

    vocab_size: int

    def limit(self, room: int) -> None:
        """Bound the answer to `room` tokens."""
        ...

    def settle(self, token: int) -> int | None:
        """Return the token to take for one that the mask allowed. None if the sequence stays where it is for this step."""
        ...

    def accept(self, token: int) -> FinishReason | None:
        """Accept a token. Return the finish reason if the answer is over: `error` if the grammar does not allow the token."""
        ...

    def fill(self, masks: Any, row: int) -> None:
        """Write the allowed next tokens into row `row` of a bit mask, int32 on the host."""
        ...


@dataclass(slots=True)
class PendingOutput:
    """Output not yet sent, because its text is incomplete or may begin a stop string."""

    text: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    confidence: float = 1.0


@dataclass(slots=True)
class SequenceTimes:
    """Times of a sequence in nanoseconds of the worker's clock, and its device time and steps."""

    submitted_ns: int
    started_ns: int = 0
    first_token_ns: int = 0
    device_ns: int = 0
    prefill_device_ns: int = 0
    num_steps: int = 0
    sum_batch: int = 0


@dataclass(slots=True, eq=False)
class RequestSequence:
    """`limit` is the number of tokens, prompt included, at which it ends. Lower `(priority, arrival)` runs first.

    While `reload` is set, pages after the computed ones are being loaded from the host cache, and the sequence does not run.
    """

    owner: Hashable
    request: int
    tokens: "array[int]"
    num_prompt: int
    sampling: Sampling
    seed: int
    limit: int
    priority: int
    arrival: int
    chain: str
    salt: str
    page_hasher: PageHasher
    detokenizer: Detokenizer
    stops: StopFilter
    times: SequenceTimes
    matcher: Matcher | None = None
    num_computed: int = 0
    num_cached: int | None = None
    reload: object | None = None
    guesses: Guesses | None = None
    drafted: Drafted | None = None
    pages: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    pending: PendingOutput = field(default_factory=PendingOutput)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    def hash_pages(self, count: int, page_size: int) -> None:
        """Extend `page_hashes` to the first `count` pages, whose tokens are known."""
        while len(self.page_hashes) < count:
            start = len(self.page_hashes) * page_size
            block = self.tokens[start : start + page_size]
            parent = self.page_hashes[-1] if self.page_hashes else b""
            self.page_hashes.append(self.page_hasher.extend(parent, block.tobytes(), len(self.page_hashes)))
