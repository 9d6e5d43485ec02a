"""Decoder of an OpenAI-compatible response into events, finish reason and usage. A stream without a finish reason was cut
off."""

from typing import Any

import msgspec

from gateway.parsers.events import CallArguments, CallStart, Event, ReasoningDelta, TextDelta

MAX_LINE_BYTES = 4 * 1024 * 1024


class Malformed(Exception):
    """The body is no valid response, or it is an error."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Usage in the fields of all vendors, as reported: bounds.py cuts it. `cached` combines their fields for cached tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    prompt_cache_hit_tokens: int = 0
    cached_tokens: int = 0

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens if details else None) or self.prompt_cache_hit_tokens or self.cached_tokens


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw | None = None


class UpstreamResponse:
    """Decoder of one response, fed with its chunks in order. `finish` is the finish reason as the server sent it."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.usage: Usage | None = None
        self._decoder = msgspec.json.Decoder(_Chunk)
        self._open_call: int | None = None
        self._num_calls = 0

    def take(self, data: bytes) -> list[Event]:
        """Return the events of one chunk, or of a whole unstreamed response. Raises Malformed."""
        try:
            chunk = self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"it sent an invalid chunk: {error}") from error
        if chunk.error is not None and bytes(chunk.error) != b"null":
            raise Malformed(f"it sent an error: {error_text(data)}")
        self.usage = chunk.usage or self.usage
        if not chunk.choices:
            return []
        choice = chunk.choices[0]
        self.finish = choice.finish_reason or self.finish
        delta = choice.delta or choice.message
        return self._events(delta) if delta else []

    def _events(self, delta: _Delta) -> list[Event]:
        events: list[Event] = []
        if reasoning := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(reasoning))
        if delta.content:
            events.append(TextDelta(delta.content))
        for place, call in enumerate(delta.tool_calls or ()):
            events += self._call(place if call.index is None else call.index, call.function)
        return events

    def _call(self, index: int, function: _Function) -> list[Event]:
        """Return the events of a piece of a tool call. Raises Malformed for arguments of a call that is not the open one."""
        events: list[Event] = []
        if index != self._open_call:
            if not function.name:
                raise Malformed(f"it sent arguments of tool call {index} before its name")
            self._open_call, self._num_calls = index, self._num_calls + 1
            events.append(CallStart(self._num_calls - 1, "", function.name))
        if function.arguments:
            events.append(CallArguments(self._num_calls - 1, function.arguments))
        return events


class Lines:
    """Incremental parser of server-sent events. Returns the data of each; raises Malformed for too long a line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise Malformed(f"it sent a line of over {MAX_LINE_BYTES:,} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def error_text(body: bytes) -> str:
    """Return the error message in a response body, at most 300 characters."""
    try:
        data: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        data = None
    if isinstance(data, dict):
        data = data.get("error", data)
        data = data.get("message", data) if isinstance(data, dict) else data
    text = str(data) if data is not None else body.decode(errors="replace")
    return " ".join(text.split())[:300]
