"""The dialect of OpenAI's chat completions, which every framework supports."""

from collections.abc import Sequence

from backends.wire import TokenLogprob
from gateway.api.chat import parse_chat
from gateway.api.chat_answer import Usage
from gateway.api.chat_render import (
    DONE,
    ChunkRenderer,
    finish_reason,
    render_completion,
    render_error,
    render_error_event,
    usage,
)
from gateway.api.dialect import AnswerChoice, ParsedRequest, ResponseStart, TokenUsage
from gateway.errors import HeadwayError
from gateway.parsers.events import Event, TextDelta

DEFAULT_MAX_TOKENS = 2048


class ChatDialect:
    id_prefix = "chatcmpl-"

    async def parse(self, body: bytes, tenant: str) -> ParsedRequest:
        return ParsedRequest(parse_chat(body, max_tokens_default=DEFAULT_MAX_TOKENS), ChatWriter)

    def error(self, error: HeadwayError) -> bytes:
        return render_error(error)

    def error_event(self, error: HeadwayError) -> bytes:
        return render_error_event(error)


class ChatWriter:
    def __init__(self, begun: ResponseStart) -> None:
        self._begun = begun
        self._renderers = [
            ChunkRenderer(
                id=begun.id,
                created=begun.created,
                model=begun.model,
                include_usage=begun.request.include_usage,
                index=index,
                service_tier=begun.request.served_tier,
            )
            for index in range(begun.request.num_choices if begun.request.stream else 0)
        ]

    def open(self) -> bytes:
        return b"".join(renderer.open() for renderer in self._renderers)

    def events(self, choice: int, events: Sequence[Event], logprobs: Sequence[TokenLogprob]) -> bytes:
        renderer = self._renderers[choice]
        if len(events) == 1 and not logprobs:
            return renderer.event(events[0])
        out: list[bytes] = []
        if logprobs:
            text = "".join(event.text for event in events if isinstance(event, TextDelta))
            out.append(renderer.text_with_logprobs(text, logprobs))
            events = [event for event in events if not isinstance(event, TextDelta)]
        out += map(renderer.event, events)
        return b"".join(out)

    def end(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        out = [
            renderer.finish(finish_reason(choice.reason, len(choice.answer.tool_calls)))
            for renderer, choice in zip(self._renderers, choices, strict=True)
        ]
        if self._begun.request.include_usage:
            out.append(self._renderers[0].usage(_usage(spent)))
        out.append(DONE)
        return b"".join(out)

    def whole(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        begun = self._begun
        return render_completion(
            id=begun.id,
            created=begun.created,
            model=begun.model,
            choices=choices,
            usage=_usage(spent),
            service_tier=begun.request.served_tier,
        )


def _usage(spent: TokenUsage) -> Usage:
    return usage(
        prompt_tokens=spent.prompt_tokens,
        cached_tokens=spent.cached_tokens,
        completion_tokens=spent.output_tokens,
        headway=spent.headway,
    )
