"""How an answer in JSON comes to its end within its limit: the mask says what may follow, this says what still leaves room.

From where the answer is, a short way to its end is known: strings and lists close, what may be left out is left out. A token is
taken if twice that way fits into what is left behind it, so that each part still to come gets its share; nearer to the limit,
only if it makes the way shorter. Else the way's own next token is taken. Whatever happens, the way fits, if it ever did.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import xgrammar

SHARE = 2
PASSED = 6
"""Tokens of a way that one other token may stand for."""
THINK_BEGIN, THINK_END = b"<think>", b"</think>"

_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OUTSIDE = [*b"}],: 0123456789-ntf", *b'"[{']
"""Outside of strings, from what ends most to what begins most."""
_REST = [*range(0x21, 0x7F), 0x20, *range(0x80, 0x100)]
_INSIDE = [byte for byte in _REST if byte not in (_QUOTE, _BACKSLASH)] + [_BACKSLASH]


class Pieces:
    """A vocabulary's tokens as bytes, by id; control tokens are empty."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts
        self._ids = {text: token for token, text in enumerate(texts) if text}
        self.longest = max(map(len, self._ids), default=0)

    def tokens(self, text: bytes) -> list[int] | None:
        """The longest piece that fits, then again: so what is left behind the first tokens has the other tokens. None where
        a byte is no piece."""
        tokens, at = list[int](), 0
        while at < len(text):
            length = next((n for n in range(min(self.longest, len(text) - at), 0, -1) if text[at : at + n] in self._ids), 0)
            if not length:
                return None
            tokens.append(self._ids[text[at : at + length]])
            at += length
        return tokens


class ClosingSuffix(NamedTuple):
    """`cost` counts its tokens and the one that ends the answer."""

    text: bytes
    tokens: list[int]

    @property
    def cost(self) -> int:
        return len(self.tokens) + 1


class LengthLimiter:
    """One sequence's. `room` is the number of tokens that it may still have, `most` what one more part may cost, about.

    Far from the limit nobody looks: the next look is when a quarter of what is to spare is used up.
    """

    def __init__(self, pieces: Pieces, *, room: int, most: int, thinks: bool) -> None:
        self._pieces, self._room, self._most, self._thinks = pieces, room, most, thinks
        self._said = bytearray()
        self._look_at = room
        self._suffix: ClosingSuffix | None = None
        self._ahead: tuple[int, ClosingSuffix] | None = None
        self.steered = False

    def settle(self, matcher: "xgrammar.GrammarMatcher", token: int) -> int:
        """The token, or the one that is taken for it. The matcher stays where it is."""
        text = self._pieces.texts[token]
        if self._room > self._look_at or not text:
            return token
        suffix = self._suffix or self._found(matcher, b"")
        if suffix is None or suffix.cost > self._room:
            self._look_at = -1  # there is no end in reach any more
            return token
        self._most = max(self._most, suffix.cost)
        if (spare := (self._room - SHARE * (suffix.cost + self._most)) // 4) > 0:
            self._look_at = self._room - spare
            return token
        after = self._after(matcher, token, suffix)
        left = self._room - 1
        if after is not None and (left >= SHARE * after.cost or left >= after.cost < suffix.cost):
            self._ahead = token, after
            return token
        self.steered = True
        if not suffix.tokens:
            stop: int = matcher.stop_token_ids[0]
            return stop
        self._ahead = suffix.tokens[0], self._rest(suffix)
        return suffix.tokens[0]

    def accepted(self, token: int) -> None:
        self._said += self._pieces.texts[token]
        self._room -= 1
        self._suffix = self._ahead[1] if self._ahead is not None and self._ahead[0] == token else None
        self._ahead = None

    def _after(self, matcher: "xgrammar.GrammarMatcher", token: int, suffix: ClosingSuffix) -> ClosingSuffix | None:
        """The way behind a token: mostly the same, or what is left of it when the token said what its first ones would have."""
        if suffix.tokens and token == suffix.tokens[0]:
            return self._rest(suffix)
        ahead = matcher.fork()
        if not ahead.accept_token(token):
            return None
        rest = suffix
        for _ in range(PASSED):
            trial = ahead.fork()
            if (not rest.text or trial.accept_string(rest.text)) and trial.is_completed():
                return rest
            if not rest.tokens:
                break
            rest = self._rest(rest)
        return self._found(ahead, self._pieces.texts[token])

    def _rest(self, suffix: ClosingSuffix) -> ClosingSuffix:
        return ClosingSuffix(suffix.text[len(self._pieces.texts[suffix.tokens[0]]) :], suffix.tokens[1:])

    def _found(self, matcher: "xgrammar.GrammarMatcher", text: bytes) -> ClosingSuffix | None:
        """From where `matcher` is, behind `text` that is not yet accepted here."""
        at_most = self._room * self._pieces.longest
        found = closing_suffix(matcher.fork(), bytes(self._said) + text, thinks=self._thinks, max_bytes=at_most)
        tokens = None if found is None else self._pieces.tokens(found)
        return None if found is None or tokens is None else ClosingSuffix(found, tokens)


def closing_suffix(matcher: "xgrammar.GrammarMatcher", said: bytes, *, thinks: bool, max_bytes: int) -> bytes | None:
    """What ends the answer that `said` begins, advancing `matcher`; None where no end is found in so many bytes."""
    way, used = bytearray(), dict[int, int]()
    thoughts, _, answer = said.rpartition(THINK_END)
    if thinks and not thoughts and matcher.accept_string(THINK_END):
        way += THINK_END
        answer = b""
    inside, escaped = _lexed(answer, inside=False, escaped=False)
    while not matcher.is_completed():
        forced = matcher.find_jump_forward_string().encode()
        if forced and matcher.accept_string(forced):
            step = forced
        else:
            order = [_QUOTE, *sorted(_INSIDE, key=lambda byte: used.get(byte, 0))] if inside else _OUTSIDE
            step = next((one for byte in order if matcher.accept_string(one := bytes((byte,)))), b"")
            if not step or len(way) > max_bytes:
                return None
            used[step[0]] = used.get(step[0], 0) + 1
        way += step
        inside, escaped = _lexed(step, inside=inside, escaped=escaped)
    return bytes(way)


def _lexed(text: bytes, *, inside: bool, escaped: bool) -> tuple[bool, bool]:
    """Whether JSON is inside a string behind `text`, and behind a backslash there."""
    for byte in text:
        if escaped:
            escaped = False
        elif byte == _QUOTE:
            inside = not inside
        elif byte == _BACKSLASH:
            escaped = inside
    return inside, escaped
