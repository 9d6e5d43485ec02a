"""What an API dialect is: it reads a body into a Request, and writes what was answered in its own words."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from backends.wire import FinishReason, TokenLogprob
from gateway.errors import HeadwayError
from gateway.parsers.events import Answer, Event
from gateway.request import Request


class ResponseStart(NamedTuple):
    """What is known of an answer when its first frame is there. `created` in seconds since 1970; `cached_tokens` as
    the decision expected them."""

    id: str
    created: int
    model: str
    request: Request
    prompt_tokens: int = 0
    cached_tokens: int = 0


class TokenUsage(NamedTuple):
    """Tokens of all choices together; `headway` is what only we report, such as dollars and the decision's id."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    headway: dict[str, Any]


class AnswerChoice(NamedTuple):
    """One answer and how it ended. `logprobs` is None where none were asked for."""

    answer: Answer
    reason: FinishReason
    stop_text: str = ""
    logprobs: Sequence[TokenLogprob] | None = None


class Writer(Protocol):
    """One answer on its way out. In a stream: `open`, any number of `events`, `end`; else only `whole`."""

    def open(self) -> bytes: ...

    def events(self, choice: int, events: Sequence[Event], logprobs: Sequence[TokenLogprob]) -> bytes: ...

    def end(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes: ...

    def whole(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes: ...


class ParsedRequest(NamedTuple):
    request: Request
    writer: Callable[[ResponseStart], Writer]


class Dialect(Protocol):
    """`tenant` is whose state `parse` may refer to, and may have to wait for. It raises BadRequest and nothing else."""

    id_prefix: str

    async def parse(self, body: bytes, tenant: str) -> ParsedRequest: ...

    def error(self, error: HeadwayError) -> bytes:
        """The body of an error response."""
        ...

    def error_event(self, error: HeadwayError) -> bytes:
        """The same inside a stream that has begun; nothing follows it."""
        ...
