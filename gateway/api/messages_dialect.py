"""The dialect of Anthropic's Messages. Content comes as numbered blocks, each with a start, deltas and a stop event."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from backends.wire import TokenLogprob
from gateway.api.dialect import AnswerChoice, ParsedRequest, ResponseStart, TokenUsage
from gateway.api.messages import parse_messages
from gateway.errors import HeadwayError
from gateway.parsers.events import CallArguments, CallStart, Event, ReasoningDelta, TextDelta

_encode = msgspec.json.Encoder().encode

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
Data = dict[str, Any]


class MessagesDialect:
    id_prefix = "msg_"

    async def parse(self, body: bytes, tenant: str) -> ParsedRequest:
        return ParsedRequest(parse_messages(body), MessagesWriter)

    def error(self, error: HeadwayError) -> bytes:
        return _encode(_error(error))

    def error_event(self, error: HeadwayError) -> bytes:
        return _event(_error(error))


class MessagesWriter:
    def __init__(self, begun: ResponseStart) -> None:
        self._begun = begun
        self._block = -1
        self._kind: Literal["", "text", "thinking", "tool_use"] = ""

    def open(self) -> bytes:
        begun = self._begun
        usage = _usage(TokenUsage(begun.prompt_tokens, begun.cached_tokens, 0, {}))
        return _event({"type": "message_start", "message": self._message([], None, None, usage)})

    def events(self, choice: int, events: Sequence[Event], logprobs: Sequence[TokenLogprob]) -> bytes:
        return b"".join(part for event in events for part in self._written(event))

    def end(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        reason, sequence = _stop(choices[0])
        out = self._closed()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        out.append(_event({"type": "message_delta", "delta": delta, "usage": _usage(spent)}))
        out.append(_event({"type": "message_stop"}))
        return b"".join(out)

    def whole(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        answer = choices[0].answer
        content: list[Data] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.content:
            content.append({"type": "text", "text": answer.content})
        for call in answer.tool_calls:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
        reason, sequence = _stop(choices[0])
        usage = _usage(spent) | {"headway": spent.headway}
        return _encode(self._message(content, reason, sequence, usage))

    def _message(self, content: list[Data], reason: str | None, sequence: str | None, usage: Data) -> Data:
        return {
            "id": self._begun.id,
            "type": "message",
            "role": "assistant",
            "model": self._begun.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }

    def _written(self, event: Event) -> list[bytes]:
        match event:
            case TextDelta(text):
                out = self._in_block("text", {"type": "text", "text": ""})
                return [*out, self._delta({"type": "text_delta", "text": text})]
            case ReasoningDelta(text):
                out = self._in_block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                return [*out, self._delta({"type": "thinking_delta", "thinking": text})]
            case CallStart(_, id, name):
                return self._begin("tool_use", {"type": "tool_use", "id": id, "name": name, "input": {}})
            case CallArguments(_, text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]

    def _in_block(self, kind: Literal["text", "thinking"], block: Data) -> list[bytes]:
        return [] if self._kind == kind else self._begin(kind, block)

    def _begin(self, kind: Literal["text", "thinking", "tool_use"], block: Data) -> list[bytes]:
        out = self._closed()
        self._kind = kind
        self._block += 1
        out.append(_event({"type": "content_block_start", "index": self._block, "content_block": block}))
        return out

    def _delta(self, delta: Data) -> bytes:
        return _event({"type": "content_block_delta", "index": self._block, "delta": delta})

    def _closed(self) -> list[bytes]:
        if not self._kind:
            return []
        self._kind = ""
        return [_event({"type": "content_block_stop", "index": self._block})]


def _stop(choice: AnswerChoice) -> tuple[str, str | None]:
    if choice.reason == "length":
        return "max_tokens", None
    if choice.answer.tool_calls:
        return "tool_use", None
    return ("stop_sequence", choice.stop_text) if choice.stop_text else ("end_turn", None)


def _usage(spent: TokenUsage) -> Data:
    return {
        "input_tokens": spent.prompt_tokens - spent.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": spent.cached_tokens,
        "output_tokens": spent.output_tokens,
    }


def _input(arguments: str) -> Any:
    """Return the parsed arguments. Truncated arguments are not an object and are returned as text under a key of ours."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"_unparsed": arguments}


def _error(error: HeadwayError) -> Data:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message, "param": error.param, "code": error.code}}


def _event(data: Data) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), _encode(data))
