"""Encodes an upstream's events as one JSON line each, so that pieces join like any text, and decodes them."""

import msgspec

from gateway.parsers.events import CallArguments, Calls, CallStart, Event, ReasoningDelta, TextDelta

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(tuple[str, str])


def encode_event(event: Event) -> str:
    match event:
        case TextDelta(text):
            pair = ("text", text)
        case ReasoningDelta(text):
            pair = ("reasoning", text)
        case CallStart(_, _, name):
            pair = ("call", name)
        case CallArguments(_, text):
            pair = ("arguments", text)
    return _encode(pair).decode() + "\n"


class EventParser:
    """Parser of encoded events. Ids and numbers of calls are assigned here, as in every parser."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._rest = ""

    def feed(self, text: str) -> list[Event]:
        *lines, self._rest = (self._rest + text).split("\n")
        return [self._event(*_decoder.decode(line)) for line in lines]

    def close(self) -> list[Event]:
        return []

    def _event(self, kind: str, text: str) -> Event:
        match kind:
            case "text":
                return TextDelta(text)
            case "reasoning":
                return ReasoningDelta(text)
            case "call":
                return self._calls.start(text)
            case _:
                return self._calls.arguments(text)
