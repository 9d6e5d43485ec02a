"""What the workers of a large fleet score, as columns of one row a worker, and who is preferred: in numbers and in order those
of `decide`."""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gateway.routing.decision import RoutingRequest

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


class Scores:
    """By row. What only settles what is equal is worked out when it is asked for."""

    def __init__(
        self, score: Floats, ttft: Floats, usd: Floats, *, finish: Callable[[], Floats], doubt: Callable[[], Floats]
    ) -> None:
        self.score, self.ttft, self.usd = score, ttft, usd
        self._finish, self._doubt = finish, doubt

    @cached_property
    def finish(self) -> Floats:
        return self._finish()

    @cached_property
    def doubt(self) -> Floats:
        return self._doubt()

    def columns(self) -> Iterator[Floats]:
        """In the order in which candidates are preferred, but for the name."""
        yield self.score
        yield self.finish
        yield self.ttft
        yield self.doubt


def missed(routing_request: RoutingRequest, ttft: Floats, finish: Floats) -> Floats | float:
    on_time = 1.0 - _miss(ttft, routing_request.ttft_slo_s)
    if routing_request.deadline_s is not None:
        on_time = on_time * (1.0 - _miss(finish, routing_request.deadline_s))
    return 1.0 - on_time


def _miss(predicted: Floats, slo_s: float | None) -> Floats | float:
    if slo_s is None:
        return 0.0
    later = predicted > 0
    if slo_s <= 0:
        return later.astype(np.float64)
    ratio = slo_s / (predicted if (all_later := later.all()) else np.where(later, predicted, 1.0))
    np.minimum(ratio, 1e6, out=ratio)
    ratio *= ratio
    ratio *= ratio
    ratio += 1.0
    np.divide(1.0, ratio, out=ratio)
    return ratio if all_later else np.where(later, ratio, 0.0)


def best_rows(scores: Scores, rows: Rows | None, count: int) -> list[int]:
    """The first rows (of all, for None) as candidates are preferred, in any order: what is equal in one column is told apart
    by the next."""
    found: list[int] = []
    for column in scores.columns():
        values = column if rows is None else column.take(rows)
        wanted = count - len(found)
        if len(values) <= wanted:
            break
        last = values.min()  # where many are equal to the first, that is enough to know
        equal = (values == last).nonzero()[0]
        if len(equal) < wanted:
            last = np.partition(values, wanted - 1)[wanted - 1]
            less = (values < last).nonzero()[0]
            found += (less if rows is None else rows.take(less)).tolist()
            wanted = count - len(found)
            equal = (values == last).nonzero()[0]
        rows = equal if rows is None else rows.take(equal)
        if len(rows) == wanted:
            break
    left = range(len(scores.score)) if rows is None else rows.tolist()
    found += left[: count - len(found)]
    return found


def first_row(scores: Scores, rows: list[int]) -> int:
    """Of a few rows the one that is preferred."""
    for column in scores.columns():
        if len(rows) == 1:
            break
        values = [column.item(row) for row in rows]
        least = min(values)
        rows = [row for row, value in zip(rows, values, strict=True) if value == least]
    return min(rows)
