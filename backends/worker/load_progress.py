"""Progress of model loading: a line for every tenth of the layers, readable on a terminal and in a supervisor's log."""

from collections.abc import Callable

TENTHS = 10


class ProgressBar:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._shown = say, 0

    def show(self, done: int, of: int) -> None:
        tenth = done * TENTHS // of
        if tenth > self._shown or done == of:
            self._shown = tenth
            self._say(f"loading [{'#' * tenth}{'.' * (TENTHS - tenth)}] {done} of {of} layers")
