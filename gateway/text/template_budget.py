"""Budget of steps and bytes of one rendering: a template of a foreign checkpoint must neither run nor grow without end.

A step is an iteration of a loop or a call of a macro. Operators, methods and filters that make long texts are bounded by the
length of their result, before they make it.
"""

import re
import time
from collections.abc import Callable, Sequence, Sized
from contextvars import ContextVar
from functools import wraps
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError

MAX_STEPS, STEPS_A_MESSAGE = 100_000, 100
"""A step takes about a microsecond. Real templates take some ten for each message."""
MAX_S, STEPS_A_LOOK = 5.0, 64
"""Seconds of a rendering whose single steps are slow, and the steps between two looks at the clock."""
MAX_CHARS, CHARS_A_CHAR = 1_000_000, 8
"""Characters of a text, and more for each of the conversation. Real templates write each at most twice, and escape it."""
MAX_WIDTH = 1_000
"""Characters that padding, indentation or a number's format may add."""
MAX_INT_BITS = 4_096
_WIDE = re.compile(r"\d{4,}|\*|\{[^}]*\{")
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_WIDTH_FILTERS = ("batch", "center", "indent", "slice", "tojson", "wordwrap")


class BudgetExceeded(SecurityError):
    """A rendering takes too many steps, or too much text."""


class Budget:
    """Budget of one rendering of a conversation with `num_messages` and `num_chars`."""

    __slots__ = ("chars_left", "max_chars", "steps_left", "until")

    def __init__(self, num_messages: int, num_chars: int) -> None:
        self.until = time.monotonic() + MAX_S
        self.steps_left = MAX_STEPS + STEPS_A_MESSAGE * num_messages
        self.max_chars = self.chars_left = MAX_CHARS + CHARS_A_CHAR * num_chars


_budget: ContextVar[Budget] = ContextVar("budget")


def joined(pieces: Any, budget: Budget) -> str:
    """Return the text of a rendering. Raises BudgetExceeded."""
    token = _budget.set(budget)
    parts: list[str] = []
    try:
        for piece in pieces:
            budget.chars_left -= len(piece)
            if budget.chars_left < 0:
                raise BudgetExceeded(f"the text has over {budget.max_chars:,} characters")
            parts.append(piece)
    finally:
        _budget.reset(token)
    return "".join(parts)


def step() -> str:
    """Count one step. Raises BudgetExceeded."""
    budget = _budget.get(None)
    if budget is not None:
        budget.steps_left -= 1
        if budget.steps_left < 0 or (not budget.steps_left % STEPS_A_LOOK and time.monotonic() > budget.until):
            raise BudgetExceeded("the template takes too many steps")
    return ""


def count_steps(tree: nodes.Template) -> nodes.Template:
    """Return the tree with a step at the start of every loop's and macro's body, and with bounded concatenations."""
    for loop in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        call = nodes.Call(nodes.EnvironmentAttribute("budget_step"), [], [], None, None, lineno=loop.lineno)
        cast(nodes.For, loop).body.insert(0, nodes.Output([call], lineno=loop.lineno))
    for concatenation in list(tree.find_all(nodes.Concat)):
        bounded = nodes.EnvironmentAttribute("budget_concat")
        values = list(concatenation.nodes)
        concatenation.nodes = [nodes.Call(bounded, values, [], None, None, lineno=concatenation.lineno)]
    return tree


def concat(*values: Any) -> str:
    """Return the values as one text, as the operator `~` does."""
    texts = [str(value) for value in values]
    check_length(sum(map(len, texts)))
    return "".join(texts)


def check_length(length: int) -> None:
    """Raise BudgetExceeded for a value that is longer than the whole text may be."""
    budget = _budget.get(None)
    if length > (budget.max_chars if budget else MAX_CHARS):
        raise BudgetExceeded(f"a value of {length:,} characters or entries is too long")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raise BudgetExceeded if the result of a binary operator would be too long."""
    if operator == "*":
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, str | list | tuple) and isinstance(times, int):
                check_length(len(sized) * max(0, times))
        _check_bits(_bits(left) + _bits(right))
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        check_length(len(left) + len(right))
    elif operator == "**":
        _check_bits(_bits(left) * right if isinstance(right, int) else 0)
    elif operator == "%" and isinstance(left, str):
        _check_format(left)


def check_method(owner: Any, name: str, arguments: Sequence[Any]) -> None:
    """Raise BudgetExceeded if the result of a text's method would be too long."""
    if not isinstance(owner, str):
        return
    if name in _PADDING:
        _check_widths(name, arguments)
    elif name in ("format", "format_map"):
        _check_format(owner)
    elif name == "replace" and len(arguments) >= 2:
        _check_replace(owner, *arguments[:2])
    elif name == "join" and arguments:
        _check_join(owner, arguments[0])
    elif name == "translate":
        raise BudgetExceeded("`translate` is not supported")


def guard_filters(environment: jinja2.Environment) -> None:
    """Bound the filters of an environment that make long texts, and remove what makes text of nothing."""
    environment.globals.pop("lipsum", None)
    for name in _WIDTH_FILTERS:
        environment.filters[name] = _of_width(name, environment.filters[name])
    plain_format, plain_replace, plain_join = (environment.filters[name] for name in ("format", "replace", "join"))

    def bounded_format(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_format(str(value))
        return plain_format(value, *args, **kwargs)

    def bounded_replace(context: Any, text: Any, old: Any, new: Any, *args: Any, **kwargs: Any) -> Any:
        _check_replace(str(text), str(old), str(new))
        return plain_replace(context, text, old, new, *args, **kwargs)

    def bounded_join(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        items = list(value)
        _check_join(str(d), items)
        return plain_join(context, items, d, attribute)

    environment.filters["format"] = bounded_format
    environment.filters["replace"] = jinja2.pass_eval_context(bounded_replace)
    environment.filters["join"] = jinja2.pass_eval_context(bounded_join)


def _of_width(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with a bound on its arguments, which follow the filtered value and perhaps the environment."""
    num_before = 2 if hasattr(plain, "jinja_pass_arg") else 1

    @wraps(plain)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_widths(name, (*args[num_before:], *kwargs.values()))
        return plain(*args, **kwargs)

    return bounded


def _check_widths(name: str, arguments: Sequence[Any]) -> None:
    for value in arguments:
        parts = value if isinstance(value, tuple) else (value,)
        sizes = (len(part) if isinstance(part, str) else part for part in parts if isinstance(part, str | int))
        if any(size > MAX_WIDTH for size in sizes):
            raise BudgetExceeded(f"an argument of `{name}` is over {MAX_WIDTH:,}")


def _check_format(text: str) -> None:
    if _WIDE.search(text) and ("%" in text or "{" in text):
        raise BudgetExceeded("a format with a width of four digits, or a computed one, is not supported")


def _check_join(separator: str, items: Any) -> None:
    if not isinstance(items, str | list | tuple):
        raise BudgetExceeded("`join` needs a list: use the filter")
    check_length(len(separator) * len(items) + sum(len(item) for item in items if isinstance(item, str)))


def _check_replace(text: str, old: str, new: str) -> None:
    if len(new) > len(old):
        check_length(len(text) + text.count(old) * (len(new) - len(old)))


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise BudgetExceeded("a number is too large")
