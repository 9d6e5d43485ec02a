"""Interface of an API dialect: it parses a request body into a Request and renders the answer in its own format."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from backends.wire import FinishReason, TokenLogprob
from gateway.errors import HeadwayError
from gateway.parsers.events import Answer, Event
from gateway.request import Request


class ResponseStart(NamedTuple):
    """State of an answer at its first frame. `created` is in seconds since 1970. `cached_tokens` is the decision's
    prediction."""

    id: str
    created: int
    model: str
    request: Request
    prompt_tokens: int = 0
    cached_tokens: int = 0


class TokenUsage(NamedTuple):
    """Tokens of all choices together. `headway` holds our extensions, such as dollars and the decision's id."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    headway: dict[str, Any]


class AnswerChoice(NamedTuple):
    """One answer and its finish reason. `logprobs` is None if the request asked for none."""

    answer: Answer
    reason: FinishReason
    stop_text: str = ""
    logprobs: Sequence[TokenLogprob] | None = None


class Writer(Protocol):
    """Renders one answer. A stream calls `open`, `events` any number of times, then `end`; otherwise only `whole` is called."""

    def open(self) -> bytes: ...

    def events(self, choice: int, events: Sequence[Event], logprobs: Sequence[TokenLogprob]) -> bytes: ...

    def end(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes: ...

    def whole(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes: ...


class ParsedRequest(NamedTuple):
    request: Request
    writer: Callable[[ResponseStart], Writer]


class Dialect(Protocol):
    """One API format. `parse` may wait for stored state of `tenant`. It raises BadRequest and nothing else."""

    id_prefix: str

    async def parse(self, body: bytes, tenant: str) -> ParsedRequest: ...

    def error(self, error: HeadwayError) -> bytes:
        """Return the body of an error response."""
        ...

    def error_event(self, error: HeadwayError) -> bytes:
        """Return the error as an event of a stream that has begun. It is the stream's last event."""
        ...
