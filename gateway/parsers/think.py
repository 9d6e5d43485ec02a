"""Separates reasoning from the answer: text between `<think>` and `</think>`. Line breaks around the marks are dropped."""

from gateway.parsers.events import Event, Parser, ReasoningDelta, TextDelta, may_begin

OPEN, CLOSE = "<think>", "</think>"


class TextParser:
    """Parser that emits all text unchanged."""

    def feed(self, text: str) -> list[Event]:
        return [TextDelta(text)] if text else []

    def close(self) -> list[Event]:
        return []


class ThinkParser:
    """Parser of reasoning. `inside` means that the prompt already opened it. Text after it goes to `answer`."""

    def __init__(self, answer: Parser, *, inside: bool) -> None:
        self._answer = answer
        self._state = "reasoning" if inside else "start"
        self._held = ""
        self._begun = False

    def feed(self, text: str) -> list[Event]:
        if self._state == "answer":
            return self._answer.feed(text)
        text, self._held = self._held + text, ""
        if self._state == "start":
            first = text.lstrip()
            if first.startswith(OPEN):
                self._state, text = "reasoning", first[len(OPEN) :]
            elif OPEN.startswith(first):
                self._held = text
                return []
            else:
                self._state = "answer"
                return self._answer.feed(text)
        if self._state == "reasoning":
            return self._reason(text)
        return self._after(text)

    def close(self) -> list[Event]:
        if self._state == "start":
            return [*self._answer.feed(self._held), *self._answer.close()]
        events: list[Event] = []
        if self._state == "reasoning":
            events += _reasoning(self._held.rstrip("\n"))
        return [*events, *self._answer.close()]

    def _reason(self, text: str) -> list[Event]:
        if not self._begun:
            text = text.lstrip("\n")
            if not text:
                return []
            self._begun = True
        at = text.find(CLOSE)
        if at >= 0:
            self._state = "after"
            return [*_reasoning(text[:at].rstrip("\n")), *self._after(text[at + len(CLOSE) :])]
        kept = text[: len(text) - may_begin(CLOSE, text)].rstrip("\n")
        self._held = text[len(kept) :]
        return _reasoning(kept)

    def _after(self, text: str) -> list[Event]:
        text = text.lstrip("\n")
        if not text:
            return []
        self._state = "answer"
        return self._answer.feed(text)


def _reasoning(text: str) -> list[Event]:
    return [ReasoningDelta(text)] if text else []
