"""How an answer in JSON comes to its end within its limit: the mask says what may follow, this says what still leaves room.

From where the answer is, a short way to its end is known: strings and lists close, what may be left out is left out. A token is
taken if twice that way fits into what is left behind it, so that each part still to come gets its share; nearer to the limit,
only if it makes the way shorter. Else the way's own next token is taken. Whatever happens, the way fits, if it ever did.

The search runs on the engine's thread, a bounded piece in each step. Meanwhile its sequence stays where it is; others go on.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import xgrammar

SHARE = 2
PASSED = 6
"""Tokens of a way that one other token may stand for."""
STEP_WORK = 500
"""Work of one sequence in one step. One unit is one tried byte, about 1 us (AMD EPYC, 2 cores)."""
BULK_BYTES = 8
"""Bytes of a text accepted at once that cost about as much as one tried byte (0.16 us each, same machine)."""
BULK = 1024
"""The most bytes that are accepted at once."""
MAX_HELD_STEPS = 256
"""Steps after which a search is given up: half a megabyte of filler is found by then. The answer is not led any more."""
MAX_JUMP = 4096
"""Bytes of the longest part up to which the library may be asked for the text that must follow: it returns all at once."""
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
        lengths: dict[int, set[int]] = {}
        for text in self._ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(some, reverse=True) for first, some in lengths.items()}

    def token_at(self, text: bytes, at: int) -> int | None:
        """The longest piece that fits at a position. None where the byte is no piece."""
        for length in self._lengths.get(text[at], ()):
            if (token := self._ids.get(text[at : at + length])) is not None:
                return token
        return None

    def tokens(self, text: bytes) -> Generator[int, None, list[int] | None]:
        """The longest piece that fits, then again: so what is left behind the first tokens has the other tokens. None where
        a byte is no piece. Yields its work."""
        tokens, at = list[int](), 0
        while at < len(text):
            if (token := self.token_at(text, at)) is None:
                return None
            tokens.append(token)
            at += len(self.texts[token])
            yield 1
        return tokens


class ClosingSuffix(NamedTuple):
    """`cost` counts its tokens and the one that ends the answer."""

    text: bytes
    tokens: list[int]

    @property
    def cost(self) -> int:
        return len(self.tokens) + 1


class Lexer:
    """Where in JSON a text is: inside a string, behind a backslash there. With `thinks`, JSON begins behind the thoughts."""

    def __init__(self, *, thinks: bool) -> None:
        self.inside = self._escaped = False
        self.thinks = thinks
        self._tail = b""

    def copy(self) -> "Lexer":
        other = Lexer(thinks=self.thinks)
        other.inside, other._escaped, other._tail = self.inside, self._escaped, self._tail
        return other

    @property
    def takes_filler(self) -> bool:
        return self.inside and not self._escaped

    def feed(self, text: bytes) -> None:
        if self.thinks:
            before, end, behind = (self._tail + text).partition(THINK_END)
            if end:
                self.end_thoughts()
                text = behind
            self._tail = before[-len(THINK_END) :]
        for byte in text:
            if self._escaped:
                self._escaped = False
            elif byte == _QUOTE:
                self.inside = not self.inside
            elif byte == _BACKSLASH:
                self._escaped = self.inside

    def end_thoughts(self) -> None:
        self.thinks = self.inside = self._escaped = False


class LengthLimiter:
    """One sequence's. `room` is the number of tokens that it may still have, `most` what one more part may cost, about.
    With `can_jump` no part of the grammar is longer than MAX_JUMP.

    Far from the limit nobody looks: the next look is when a quarter of what is to spare is used up.
    """

    def __init__(self, pieces: Pieces, *, room: int, most: int, thinks: bool, can_jump: bool) -> None:
        self._pieces, self._room, self._most, self._can_jump = pieces, room, most, can_jump
        self._num_said, self._lexer = 0, Lexer(thinks=thinks)
        self._look_at = room
        self._suffix: ClosingSuffix | None = None
        self._ahead: tuple[int, ClosingSuffix] | None = None
        self._search: Generator[int, None, int] | None = None
        self._searched, self._num_held = -1, 0
        self.work_done = 0
        self.steered = False

    def settle(self, matcher: "xgrammar.GrammarMatcher", token: int) -> int | None:
        """The token, or the one that is taken for it. None while that is being searched: ask again in the next step. The
        matcher stays where it is."""
        if self._search is None:
            if self._room > self._look_at or not self._pieces.texts[token]:
                return token
            self._search, self._searched, self._num_held = self._settled(matcher, token), token, 0
        step_ends_at = self.work_done + STEP_WORK
        while self.work_done < step_ends_at:
            try:
                self.work_done += next(self._search)
            except StopIteration as end:
                self._search = None
                settled: int = end.value
                return settled
        self._num_held += 1
        if self._num_held < MAX_HELD_STEPS:
            return None
        self._search, self._look_at = None, -1
        return self._searched

    def _settled(self, matcher: "xgrammar.GrammarMatcher", token: int) -> Generator[int, None, int]:
        suffix = self._suffix or (yield from self._found(matcher, b""))
        if suffix is None or suffix.cost > self._room:
            self._look_at = -1  # there is no end in reach any more
            return token
        self._most = max(self._most, suffix.cost)
        if (spare := (self._room - SHARE * (suffix.cost + self._most)) // 4) > 0:
            self._look_at = self._room - spare
            return token
        after = yield from self._after(matcher, token, suffix)
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
        text = self._pieces.texts[token]
        self._num_said += len(text)
        self._lexer.feed(text)
        self._room -= 1
        self._suffix = self._ahead[1] if self._ahead is not None and self._ahead[0] == token else None
        self._ahead = None

    def _after(
        self, matcher: "xgrammar.GrammarMatcher", token: int, suffix: ClosingSuffix
    ) -> Generator[int, None, ClosingSuffix | None]:
        """The way behind a token: mostly the same, or what is left of it when the token said what its first ones would have."""
        if suffix.tokens and token == suffix.tokens[0]:
            return self._rest(suffix)
        yield self._fork_work
        ahead = matcher.fork()
        if not ahead.accept_token(token):
            return None
        rest = suffix
        for _ in range(PASSED):
            yield self._fork_work
            trial = ahead.fork()
            if (yield from _accepts(trial, rest.text)) and trial.is_completed():
                return rest
            if not rest.tokens:
                break
            rest = self._rest(rest)
        return (yield from self._found(ahead, self._pieces.texts[token]))

    def _rest(self, suffix: ClosingSuffix) -> ClosingSuffix:
        return ClosingSuffix(suffix.text[len(self._pieces.texts[suffix.tokens[0]]) :], suffix.tokens[1:])

    @property
    def _fork_work(self) -> int:
        """A copy of the matcher takes about 10 us, and 1 us for each 64 bytes behind it."""
        return 10 + self._num_said // 64

    def _found(self, matcher: "xgrammar.GrammarMatcher", text: bytes) -> Generator[int, None, ClosingSuffix | None]:
        """From where `matcher` is, behind `text` that is not yet accepted here."""
        at_most = self._room * self._pieces.longest
        lexer = self._lexer.copy()
        lexer.feed(text)
        yield self._fork_work
        found = yield from closing_suffix(matcher.fork(), lexer, max_bytes=at_most, can_jump=self._can_jump)
        tokens = None if found is None else (yield from self._pieces.tokens(found))
        return None if found is None or tokens is None else ClosingSuffix(found, tokens)


def closing_suffix(
    matcher: "xgrammar.GrammarMatcher", lexer: Lexer, *, max_bytes: int, can_jump: bool
) -> Generator[int, None, bytes | None]:
    """What ends the answer behind which `lexer` is, advancing both; None where no end is found in so many bytes. Yields its
    work."""
    way, inside, run = bytearray(), list(_INSIDE), 0
    if lexer.thinks and matcher.accept_string(THINK_END):
        way += THINK_END
        lexer.end_thoughts()
    while not matcher.is_completed():
        forced = matcher.find_jump_forward_string().encode() if can_jump else b""
        yield 1 + len(forced) // BULK_BYTES
        if forced and matcher.accept_string(forced):
            step = forced
        elif lexer.takes_filler and run >= BULK_BYTES and not matcher.accept_string(b'"'):
            # Long texts are filled at once, by at most an eighth more than they need.
            step = b" " * min(BULK, run // BULK_BYTES)
            yield 1 + len(step) // BULK_BYTES
            if not matcher.accept_string(step):
                step, run = b"", 0
                continue
        elif lexer.takes_filler and run >= BULK_BYTES:
            step = b'"'
        else:
            step = yield from _tried(matcher, [_QUOTE, *inside] if lexer.inside else _OUTSIDE)
            if not step or len(way) > max_bytes:
                return None
            if lexer.inside and step[0] != _QUOTE:
                inside.remove(step[0])
                inside.append(step[0])  # in turn, so that every way on is tried some time
        way += step
        lexer.feed(step)
        run = run + len(step) if lexer.takes_filler else 0
        if len(way) > max_bytes:
            return None
    return bytes(way)


def _tried(matcher: "xgrammar.GrammarMatcher", order: Sequence[int]) -> Generator[int, None, bytes]:
    """The first byte that the matcher accepts, empty for none."""
    for tries, byte in enumerate(order, start=1):
        if matcher.accept_string(one := bytes((byte,))):
            yield tries
            return one
    yield len(order)
    return b""


def _accepts(matcher: "xgrammar.GrammarMatcher", text: bytes) -> Generator[int, None, bool]:
    for at in range(0, len(text), BULK):
        part = text[at : at + BULK]
        yield 1 + len(part) // BULK_BYTES
        if not matcher.accept_string(part):
            return False
    return True
