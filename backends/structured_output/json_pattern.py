"""A string's `pattern` as rules of its own, instead of the one rule that xgrammar 0.2.8 makes of it inside a JSON Schema.

That rule takes too much where options begin alike and one of them repeats: of `b{1,2}|b` it takes `bbb`. The rules that the
library writes for the same expression outside of JSON do not. In them, a class loses what JSON has to escape. Where nothing
is left to say without escapes, the library falls back to rules that are no JSON: such a pattern is refused beforehand.
"""

import ast
import re

_RULE = re.compile(r'(?P<name>\w+) ::= Regex\((?P<text>"(?:\\.|[^"\\])*"), json_string=true\)')
_PIECE = re.compile(r'(?P<literal>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<name>[A-Za-z_]\w*)')
_CODE = r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|[^\\]"
_RANGE = re.compile(rf"({_CODE})(?:-({_CODE}))?", re.DOTALL)
_ESCAPES = {"0": 0, "a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "e": 27}
_ESCAPED_LITERAL = re.compile(r'(?<!\\)(?:\\\\)*\\(?:["\\abtnvfre0]|x[01])')
_ESCAPED = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
"""Control characters, quote and backslash."""


def with_patterns_spelled_out(ebnf: str) -> str:
    """Raises ValueError for a pattern that JSON could write only with escapes, and RuntimeError for one that is none."""
    return "\n".join(_spelled_out(line) for line in ebnf.splitlines())


def check_pattern(pattern: str) -> None:
    """Raises as with_patterns_spelled_out does, which cannot tell what the library wrote without naming an expression."""
    _rules_of("root", pattern)


def _spelled_out(line: str) -> str:
    rule = _RULE.fullmatch(line)
    if rule is None:
        return line
    return _rules_of(rule["name"], ast.literal_eval(rule["text"].replace(r"\?", "?")))


def _rules_of(name: str, pattern: str) -> str:
    import xgrammar

    if "[\\^" in pattern:
        raise ValueError(r"a `pattern` with a class that begins with `\^` is not supported: put it last in the class")

    def piece(found: "re.Match[str]") -> str:
        if found["name"]:
            return f"{name}_{found['name']}"
        if found["literal"] and _ESCAPED_LITERAL.search(found["literal"]):
            raise ValueError(
                "a `pattern` with a quote, a backslash or a control character is not supported, as JSON escapes them"
            )
        return found["literal"] or _without_escaped(found["set"])

    return f"{name} ::= {name}_root\n" + _PIECE.sub(piece, str(xgrammar.Grammar.from_regex(pattern)))


def _without_escaped(text: str) -> str:
    if text.startswith("[^"):
        return f'{text[:-1]}\\"\\\\\\0-\\x1f]'
    ranges = [(_code(first), _code(last or first)) for first, last in _RANGE.findall(text[1:-1])]
    for low, high in _ESCAPED:
        ranges = [
            part
            for first, last in ranges
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    if not ranges:
        raise ValueError("a `pattern` with a class of nothing but what JSON escapes is not supported")
    return "[" + "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges) + "]"


def _code(text: str) -> int:
    if len(text) == 1:
        return ord(text)
    return int(text[2:], 16) if len(text) > 2 else _ESCAPES.get(text[1], ord(text[1]))
