"""Stop strings in streamed text. Text is withheld only while it may begin a stop string."""

from collections.abc import Sequence
from typing import NamedTuple


class Passed(NamedTuple):
    """Text to send, and the stop string that ended it, or empty."""

    text: str
    stop: str = ""


class StopFilter:
    """The earliest match wins, and of two at one position the first in the list. The match is not sent."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def feed(self, text: str) -> Passed:
        if not self._stops:
            return Passed(text)
        text = self._held + text
        matches = [(at, order) for order, stop in enumerate(self._stops) if (at := text.find(stop)) >= 0]
        if matches:
            at, order = min(matches)
            self._held = ""
            return Passed(text[:at], self._stops[order])
        keep = self._begun(text)
        self._held = text[len(text) - keep :]
        return Passed(text[: len(text) - keep])

    def close(self) -> str:
        """Return the withheld text at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Return the length of the longest suffix of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
