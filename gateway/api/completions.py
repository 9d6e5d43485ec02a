"""The dialect of OpenAI's legacy completions: the model gets the text unchanged, without a chat template."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backends.wire import Sampling, TokenLogprob
from gateway.api.chat import read_logit_bias
from gateway.api.chat_body import (
    Bias,
    Choices,
    Count,
    Int64,
    Label,
    Penalty,
    Stops,
    StopText,
    StreamOptions,
    Temperature,
    Text,
    TopK,
    TopP,
)
from gateway.api.chat_render import DONE, LEAST_LOGPROB, render_error, render_error_event
from gateway.api.decode import BodyDecoder
from gateway.api.dialect import AnswerChoice, ParsedRequest, ResponseStart, TokenUsage
from gateway.api.run_fields import RunFields, run_hints
from gateway.errors import BadRequest, HeadwayError, UnsupportedParameter
from gateway.parsers.events import Event, TextDelta
from gateway.request import Message, Request

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default."""
_encode = msgspec.json.Encoder().encode


class CompletionsBody(RunFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A completion's request body. `top_k`, `ignore_eos` and the fields that identify runs are extensions."""

    model: Label
    prompt: Text | tuple[Any, ...]
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    stop: StopText | Stops | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Int64 | None = None
    user: str | None = None
    ignore_eos: bool | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    conversation: str | None = None
    previous_response_id: str | None = None


_decode = BodyDecoder(CompletionsBody).decode


def parse_completion(body: bytes) -> Request:
    """Parse a request body. Raises BadRequest with the field at fault in `param`, and nothing else."""
    decoded = _decode(body)
    for name, harmless in (("echo", False), ("best_of", 1), ("suffix", "")):
        if getattr(decoded, name) not in (None, harmless):
            raise UnsupportedParameter(f"{name} is not supported: leave it out", param=name)
    prompt = _prompt(decoded)
    stop = decoded.stop or ()
    if decoded.stream_options is not None and not decoded.stream:
        raise BadRequest("stream_options needs stream: send stream true with it", param="stream_options")
    return Request(
        model=decoded.model,
        messages=(Message(role="user", content=prompt),),
        text=prompt,
        sampling=Sampling(
            max_tokens=decoded.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=decoded.temperature or 0.0,
            top_k=max(decoded.top_k or 0, 0),
            top_p=1.0 if decoded.top_p is None else decoded.top_p,
            seed=decoded.seed,
            stop=(stop,) if isinstance(stop, str) else stop,
            top_logprobs=decoded.logprobs,
            ignore_eos=bool(decoded.ignore_eos),
            presence_penalty=decoded.presence_penalty or 0.0,
            frequency_penalty=decoded.frequency_penalty or 0.0,
            logit_bias=read_logit_bias(decoded.logit_bias, model=decoded.model),
        ),
        max_tokens_given=decoded.max_tokens is not None,
        stream=bool(decoded.stream),
        include_usage=bool(decoded.stream_options and decoded.stream_options.include_usage),
        advisory=("user",) if decoded.user is not None else (),
        hints=run_hints(decoded),
        num_choices=decoded.n or 1,
    )


def _prompt(decoded: CompletionsBody) -> str:
    if isinstance(decoded.prompt, str):
        return decoded.prompt
    match decoded.prompt:
        case (str(text),) if text:
            return text
        case (str(), *_):
            raise UnsupportedParameter(
                "prompt: several in one request are not supported: send one request for each", param="prompt"
            )
        case _:
            raise UnsupportedParameter("prompt: token ids are not supported: send text", param="prompt")


class CompletionsDialect:
    id_prefix = "cmpl-"

    async def parse(self, body: bytes, tenant: str) -> ParsedRequest:
        return ParsedRequest(parse_completion(body), CompletionsWriter)

    def error(self, error: HeadwayError) -> bytes:
        return render_error(error)

    def error_event(self, error: HeadwayError) -> bytes:
        return render_error_event(error)


class CompletionsWriter:
    def __init__(self, begun: ResponseStart) -> None:
        self._begun = begun
        self._offsets = [0] * begun.request.num_choices

    def open(self) -> bytes:
        return b""

    def events(self, choice: int, events: Sequence[Event], logprobs: Sequence[TokenLogprob]) -> bytes:
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        scores = _logprobs(logprobs, self._offsets[choice]) if logprobs else None
        self._offsets[choice] += sum(len(token.text) for token in logprobs)
        return self._event([{"text": text, "index": choice, "logprobs": scores, "finish_reason": None}])

    def end(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        ends = [
            self._event([{"text": "", "index": n, "logprobs": None, "finish_reason": choice.reason}])
            for n, choice in enumerate(choices)
        ]
        if self._begun.request.include_usage:
            ends.append(self._event([], _usage(spent)))
        return b"".join(ends) + DONE

    def whole(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        rendered = [
            {
                "text": choice.answer.content,
                "index": n,
                "logprobs": None if choice.logprobs is None else _logprobs(choice.logprobs, 0),
                "finish_reason": choice.reason,
            }
            for n, choice in enumerate(choices)
        ]
        return _encode(self._body(rendered, _usage(spent)))

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        return b"data: %b\n\n" % _encode(self._body(choices, usage))

    def _body(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        begun = self._begun
        body = {"id": begun.id, "object": "text_completion", "created": begun.created, "model": begun.model, "choices": choices}
        return body if usage is None else body | {"usage": usage}


def _usage(spent: TokenUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.output_tokens,
        "total_tokens": spent.prompt_tokens + spent.output_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
        "headway": spent.headway,
    }


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: _finite(logprob) for text, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB
