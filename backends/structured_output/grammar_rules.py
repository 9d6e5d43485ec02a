"""Facts about the rules of a grammar: its shortest texts, and its dead ends, from which no text completes it. There a mask is
empty, or the answer never ends.

The checks read the rules alone, in time linear in their size for each level of nesting. It is complete where every byte is a
token; the engine ends a sequence that meets an empty mask all the same.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

_LAST_CODE = 0x10FFFF
_T = TypeVar("_T")


class _Kind(IntEnum):
    """Kinds of expressions in the serialization of xgrammar 0.2. Any other kind is taken as one without a dead end."""

    BYTES = 0
    CLASS = 1
    CLASS_STAR = 2
    RULE = 4
    SEQUENCE = 5
    CHOICES = 6
    TAG_DISPATCH = 7
    REPEAT = 8


class _Facts(NamedTuple):
    """`ends`: some text completes it. `starts`: some first byte is allowed. `empties`: the empty text completes it."""

    ends: bool
    starts: bool
    empties: bool


_NOTHING, _ANYTHING = _Facts(ends=False, starts=False, empties=False), _Facts(ends=True, starts=True, empties=True)


class Lengths(NamedTuple):
    """Bytes of the shortest text: of the whole grammar, and of the longest part in reach. Infinite for none."""

    answer: float
    part: float


class GrammarRules:
    """The rules of a grammar. `serialized` is xgrammar's JSON of it."""

    def __init__(self, serialized: str) -> None:
        grammar = json.loads(serialized)
        self.grammar = grammar
        data, starts = grammar["grammar_expr_data"], grammar["grammar_expr_indptr"]
        self._expressions: list[tuple[int, list[int]]] = [(data[at], data[at + 2 : at + 2 + data[at + 1]]) for at in starts]
        self._bodies: list[int] = [rule[1] for rule in grammar["rules"]]
        self._root: int = grammar["root_rule_id"]
        self._order, self._users = self._walk()
        self._facts: list[_Facts] = [_NOTHING] * len(self._expressions)
        self._settle(self._facts, self._fact)

    def check(self, *, may_prune: bool) -> bool:
        """Raise ValueError if the grammar allows a beginning that no text completes. With `may_prune`, drop the options without
        an end instead (an optional property, an item, an alternative) and return whether there were any.
        """
        if not self._facts[self._bodies[self._root]].ends:
            raise ValueError("no text of finite length matches it: a required part asks for itself or allows no character")
        if not self._has_dead_end():
            return False
        if may_prune:
            self._prune()
        if not may_prune or self._has_dead_end():
            raise ValueError("a part of it allows a beginning that no text can complete: remove that part")
        return True

    def serialized(self) -> str:
        return json.dumps(self.grammar)

    def lengths(self) -> Lengths:
        """Compute the least fixpoint of the shortest texts."""
        shortest = [math.inf] * len(self._expressions)
        self._settle(shortest, lambda number: self._shortest(shortest, *self._expressions[number]))
        return Lengths(shortest[self._bodies[self._root]], max(shortest[number] for number in self._reached()))

    def _prune(self) -> None:
        """Replace each option without an end by one that has an end, and each repetition of such a rule by none."""
        data = self.grammar["grammar_expr_data"]
        for number in self._order:
            at = self.grammar["grammar_expr_indptr"][number]
            kind, values = self._expressions[number]
            if kind == _Kind.CHOICES and self._facts[number].ends:
                living = next(option for option in values if self._facts[option].ends)
                values = [option if self._facts[option].ends else living for option in values]
            elif kind == _Kind.REPEAT and not self._facts[self._bodies[values[0]]].ends and values[1] == 0:
                values = [values[0], 0, 0]
            data[at + 2 : at + 2 + len(values)] = values
            self._expressions[number] = kind, values
        self._settle(self._facts, self._fact)

    def _walk(self) -> tuple[list[int], dict[int, list[int]]]:
        """Return the expressions below the root, parts before wholes where there is no cycle, and the users of each."""
        order, users = list[int](), dict[int, list[int]]()
        todo, seen = [(self._bodies[self._root], False)], set[int]()
        while todo:
            number, is_done = todo.pop()
            if is_done:
                order.append(number)
            elif number not in seen:
                seen.add(number)
                todo.append((number, True))
                for part in self._used(*self._expressions[number]):
                    users.setdefault(part, []).append(number)
                    todo.append((part, False))
        return order, users

    def _used(self, kind: int, values: Sequence[int]) -> Sequence[int]:
        if kind in (_Kind.SEQUENCE, _Kind.CHOICES):
            return values
        if kind in (_Kind.RULE, _Kind.REPEAT):
            return [self._bodies[values[0]]]
        return [self._bodies[rule] for rule in values[1:-2:2]] if kind == _Kind.TAG_DISPATCH else ()

    def _settle(self, known: list[_T], evaluate: Callable[[int], _T]) -> None:
        """Evaluate every expression until no value changes. In this order one evaluation suffices for all but cycles."""
        todo = deque(self._order)
        queued = set(todo)
        while todo:
            number = todo.popleft()
            queued.discard(number)
            value = evaluate(number)
            if value != known[number]:
                known[number] = value
                later = [user for user in self._users.get(number, ()) if user not in queued]
                queued.update(later)
                todo += later

    def _fact(self, number: int) -> _Facts:
        kind, values = self._expressions[number]
        match kind:
            case _Kind.BYTES:
                return _Facts(ends=True, starts=bool(values), empties=not values)
            case _Kind.CLASS:
                some = _has_member(values)
                return _Facts(ends=some, starts=some, empties=False)
            case _Kind.CLASS_STAR:
                return _Facts(ends=True, starts=_has_member(values), empties=True)
            case _Kind.RULE:
                return self._facts[self._bodies[values[0]]]
            case _Kind.SEQUENCE:
                return _in_order([self._facts[part] for part in values])
            case _Kind.CHOICES:
                options = [self._facts[part] for part in values]
                return _Facts(
                    ends=any(one.ends for one in options),
                    starts=any(one.starts for one in options),
                    empties=any(one.empties for one in options),
                )
            case _Kind.REPEAT:
                rule, least, most = values[0], values[1], values[2]
                inner = self._facts[self._bodies[rule]]
                starts = inner.starts and most != 0
                return _Facts(ends=inner.ends or least == 0, starts=starts, empties=inner.empties or least == 0)
            case _:
                return _ANYTHING

    def _shortest(self, shortest: Sequence[float], kind: int, values: Sequence[int]) -> float:
        """Return the bytes of the shortest text of an expression, by those known so far."""
        match kind:
            case _Kind.BYTES:
                return len(values)
            case _Kind.CLASS:
                return 1.0 if _has_member(values) else math.inf
            case _Kind.RULE:
                return shortest[self._bodies[values[0]]]
            case _Kind.SEQUENCE:
                return sum(shortest[part] for part in values)
            case _Kind.CHOICES:
                return min((shortest[part] for part in values), default=0.0)
            case _Kind.REPEAT:
                return shortest[self._bodies[values[0]]] * values[1] if values[1] else 0.0
            case _:
                return 0.0

    def _has_dead_end(self) -> bool:
        """Return whether an expression in reach can start and never end, or a tag without an end can be opened."""
        for number in self._reached():
            facts = self._facts[number]
            if facts.starts and not facts.ends:
                return True
            kind, values = self._expressions[number]
            if kind == _Kind.TAG_DISPATCH and not all(self._facts[self._bodies[rule]].ends for rule in values[1:-2:2]):
                return True
        return False

    def _reached(self) -> Iterator[int]:
        todo, seen = [self._bodies[self._root]], set[int]()
        while todo:
            number = todo.pop()
            if number not in seen:
                seen.add(number)
                todo += self._parts(*self._expressions[number])
                yield number

    def _parts(self, kind: int, values: Sequence[int]) -> list[int]:
        """Return the expressions that a matching text may enter from this one."""
        if kind == _Kind.CHOICES:
            return list(values)
        if kind == _Kind.TAG_DISPATCH:
            return [self._bodies[rule] for rule in values[1:-2:2]]
        if kind == _Kind.RULE or (kind == _Kind.REPEAT and values[2] != 0):
            return [self._bodies[values[0]]]
        if kind != _Kind.SEQUENCE:
            return []
        entered = []
        for part in values:
            entered.append(part)
            if not self._facts[part].ends:
                break
        return entered


def _in_order(parts: Sequence[_Facts]) -> _Facts:
    starts = False
    for part in parts:
        starts = starts or part.starts
        if not part.empties:
            break
    return _Facts(ends=all(part.ends for part in parts), starts=starts, empties=all(part.empties for part in parts))


def _has_member(values: Sequence[int]) -> bool:
    """Return whether a class, as its negation and the bounds of its ranges, has a member."""
    negated, ranges = values[0], sorted(zip(values[1::2], values[2::2], strict=True))
    if not negated:
        return bool(ranges)
    covered = -1
    for low, high in ranges:
        if low > covered + 1:
            return True
        covered = max(covered, high)
    return covered < _LAST_CODE
