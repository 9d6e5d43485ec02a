"""What an upstream said, which comes as events already: a line of JSON each, so that pieces join like any text."""

import msgspec

from gateway.parsers.events import CallArguments, Calls, CallStart, Event, ReasoningDelta, TextDelta

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(tuple[str, str])


def encode_event(event: Event) -> str:
    match event:
        case TextDelta(text):
            said = ("text", text)
        case ReasoningDelta(text):
            said = ("reasoning", text)
        case CallStart(_, _, name):
            said = ("call", name)
        case CallArguments(_, text):
            said = ("arguments", text)
    return _encode(said).decode() + "\n"


class EventParser:
    """Ids and numbers of calls are ours, as everywhere."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._rest = ""

    def feed(self, text: str) -> list[Event]:
        *lines, self._rest = (self._rest + text).split("\n")
        return [self._event(*_decoder.decode(one)) for one in lines]

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
