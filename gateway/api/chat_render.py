"""Renders answers, stream chunks and errors in OpenAI's format. Every chunk is one encode and one server-sent event."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from backends.wire import FinishReason, TokenLogprob
from gateway.api.chat_answer import (
    AnswerMessage,
    AnswerToolCall,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    ContentLogprob,
    Delta,
    Error,
    ErrorBody,
    Finish,
    Function,
    Logprobs,
    PromptDetails,
    TopLogprob,
    Usage,
)
from gateway.api.dialect import AnswerChoice
from gateway.errors import HeadwayError
from gateway.parsers.events import CallArguments, CallStart, Event, ReasoningDelta, TextDelta

DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"
"""An SSE comment, which clients skip. It keeps proxies from closing a stream that has no output yet."""

LEAST_LOGPROB = -9999.0
"""OpenAI's value for an impossible token, because JSON has no infinity."""

_encode = msgspec.json.Encoder().encode


def finish_reason(reason: FinishReason, num_calls: int) -> Finish:
    """Return the reason of an answer that ended normally. The other reasons are errors and have no OpenAI name."""
    if reason == "length":
        return "length"
    return "tool_calls" if num_calls else "stop"


def usage(*, prompt_tokens: int, cached_tokens: int, completion_tokens: int, headway: Mapping[str, Any] | None = None) -> Usage:
    """Return the token usage. `headway` holds our extensions, such as dollars and the decision's id."""
    return Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptDetails(cached_tokens),
        UNSET if headway is None else dict(headway),
    )


def render_completion(
    *,
    id: str,
    created: int,
    model: str,
    choices: Sequence[AnswerChoice],
    usage: Usage,
    service_tier: str | None = None,
) -> bytes:
    """Return the whole answer as JSON. `created` is in seconds since 1970."""
    rendered = [_choice(index, choice) for index, choice in enumerate(choices)]
    return _encode(Completion(id, "chat.completion", created, model, rendered, usage, service_tier or UNSET))


def _choice(index: int, choice: AnswerChoice) -> Choice:
    answer = choice.answer
    calls = [AnswerToolCall(Function(call.name, call.arguments), call.id, "function") for call in answer.tool_calls]
    message = AnswerMessage(
        "assistant",
        answer.content if answer.content or not calls else None,
        None,
        calls if calls else UNSET,
        answer.reasoning or UNSET,
    )
    logprobs = None if choice.logprobs is None else content_logprobs(choice.logprobs)
    return Choice(index, message, logprobs, finish_reason(choice.reason, len(calls)))


def render_error(error: HeadwayError) -> bytes:
    """Return the body of an error response."""
    return _encode(ErrorBody(Error(error.message, error.type, error.param, error.code)))


def render_error_event(error: HeadwayError) -> bytes:
    """Return the error as an event of a stream that has begun. It is the stream's last event."""
    return _event(render_error(error))


class ChunkRenderer:
    """Renders one stream's chunks, each as the bytes of an event: `open`, then text and calls, then `finish`, `usage`,
    `DONE`."""

    def __init__(
        self, *, id: str, created: int, model: str, include_usage: bool, index: int = 0, service_tier: str | None = None
    ) -> None:
        self._id, self._created, self._model, self._index = id, created, model, index
        self._service_tier = service_tier or UNSET
        self._usage: UnsetType | None = None if include_usage else UNSET
        # Text chunks differ in one string. Everything around it is encoded once and split at an empty content.
        blank = self._chunk(Delta(content="")).partition(b'"delta":{"content":""')
        self._before_text = blank[0] + b'"delta":{"content":'
        self._after_text = blank[2]

    def open(self) -> bytes:
        """Return the first chunk, which names the role and has no text."""
        return self._chunk(Delta(role="assistant", content=""))

    def text(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before_text, _encode(text), self._after_text)

    def text_with_logprobs(self, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        return self._chunk(Delta(content=text), logprobs=content_logprobs(logprobs))

    def event(self, event: Event) -> bytes:
        match event:
            case TextDelta(text):
                return self.text(text)
            case ReasoningDelta(text):
                return self._chunk(Delta(reasoning_content=text))
            case CallStart(index, id, name):
                return self._call(AnswerToolCall(Function(name, ""), id, "function", index))
            case CallArguments(index, text):
                return self._call(AnswerToolCall(Function(UNSET, text), index=index))

    def finish(self, finish: Finish) -> bytes:
        return self._chunk(Delta(), finish=finish)

    def usage(self, usage: Usage) -> bytes:
        """Return the usage chunk, for clients that asked for usage. It comes last and has no choices."""
        return _event(
            _encode(Chunk(self._id, "chat.completion.chunk", self._created, self._model, [], usage, self._service_tier))
        )

    def _call(self, call: AnswerToolCall) -> bytes:
        return self._chunk(Delta(tool_calls=[call]))

    def _chunk(self, delta: Delta, *, logprobs: Logprobs | None = None, finish: Finish | None = None) -> bytes:
        choice = ChunkChoice(self._index, delta, logprobs, finish)
        return _event(
            _encode(
                Chunk(self._id, "chat.completion.chunk", self._created, self._model, [choice], self._usage, self._service_tier)
            )
        )


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def content_logprobs(logprobs: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs([_content_logprob(token) for token in logprobs])


def _content_logprob(token: TokenLogprob) -> ContentLogprob:
    top = [TopLogprob(text, _finite(logprob), _bytes(text)) for text, logprob in token.top]
    return ContentLogprob(token.text, _finite(token.logprob), _bytes(token.text), top)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def _bytes(text: str) -> list[int]:
    return list(text.encode())
