"""The work of a step as the engine hands it to a runner, and what comes back. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from backends.engine.sequence import Matcher, RequestSequence
from backends.wire import Sampling


class Work(NamedTuple):
    """Compute `length` tokens of `sequence` from `start`; `samples` when they are its last.

    `drafts` are computed behind them: guesses of the tokens to come, kept as far as they turn out right.
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
        """Sort key of a step: decodes of about the same length lie together and share a span."""
        return self.num_tokens > 1, len(self.sequence.pages).bit_length()


@dataclass(eq=False, slots=True)
class Reload:
    """`count` pages of `sequence` are on their way from the host tier."""

    sequence: RequestSequence
    count: int


class SampleRequest(NamedTuple):
    """How to choose one token: at `position` of its sequence. `said` are its output tokens, where penalties need them."""

    sampling: Sampling
    seed: int
    position: int
    output_tokens: Sequence[int] = ()
    matcher: Matcher | None = None


class Sampled(NamedTuple):
    """`logprob`, `top` (id, logprob) and `confidence` are of the model's own distribution, before temperature, if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    confidence: float = 1.0


class StepInterrupted(Exception):
    """The step was not finished, as something else is wanted sooner."""


class Runner(Protocol):
    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        """For each piece of work in the order given: nothing, or a token for its last position and for each draft."""
        ...


@runtime_checkable
class Interruptible(Runner, Protocol):
    """One whose `run` may raise StepInterrupted, and leaves no trace then."""

    def interrupt(self) -> None:
        """Of the step under way, if there is one. On any thread."""
        ...
