"""The work of a step as the engine gives it to a runner, and the results. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from backends.engine.sequence import Matcher, RequestSequence
from backends.wire import Sampling


class Work(NamedTuple):
    """Compute `length` tokens of `sequence` from `start`. Work that includes the sequence's last token samples the next one.

    `drafts` are proposed next tokens, computed after these and kept up to the first that is wrong.
    """

    sequence: RequestSequence
    start: int
    length: int
    drafts: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.length + len(self.drafts)

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        return self.start + self.length == len(self.sequence.tokens)

    @property
    def layout(self) -> tuple[bool, int]:
        """Return the sort key of a step: decodes of about the same length are adjacent and share a span."""
        return self.num_tokens > 1, len(self.sequence.pages).bit_length()


@dataclass(eq=False, slots=True)
class Reload:
    """`count` pages of `sequence` that are being loaded from the host cache."""

    sequence: RequestSequence
    count: int


class SampleRequest(NamedTuple):
    """How to sample the token at `position` of a sequence. `output_tokens` are set if penalties need them."""

    sampling: Sampling
    seed: int
    position: int
    output_tokens: Sequence[int] = ()
    matcher: Matcher | None = None


HELD = -1
"""The sampled token of a sequence that stays where it is: its matcher still searches. The next step computes it again."""


class Sampled(NamedTuple):
    """`logprob`, `top` (id, logprob) and `confidence`, if requested, are of the model's distribution before temperature."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    confidence: float = 1.0


class StepInterrupted(Exception):
    """The step was interrupted for work of a better priority."""


class Runner(Protocol):
    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        """Return one list for each item of work, in order: empty, or a token for its last position and for each draft."""
        ...


@runtime_checkable
class Interruptible(Runner, Protocol):
    """A runner whose `run` may raise StepInterrupted and then leaves no trace."""

    def interrupt(self) -> None:
        """Interrupt the step under way, if there is one. May be called on any thread."""
        ...
