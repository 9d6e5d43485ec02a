"""Grammars of answers as token masks, by xgrammar: compiled on a few threads, filled while the forward pass runs.

xgrammar is loaded with the first grammar: a worker that never gets one starts without it.
"""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from backends.engine.request_limits import Refusal
from backends.engine.sequence import Matcher
from backends.structured_output.compile_turns import CompileTurns
from backends.structured_output.grammar_cache import GrammarCache
from backends.structured_output.grammar_compiler import BAD_GRAMMAR, compiler_for, reason_of, tokenizer_info
from backends.structured_output.grammar_rules import Lengths
from backends.structured_output.length_limit import MAX_JUMP, LengthLimiter, Pieces
from backends.structured_output.trial import Tried, Vocabulary
from backends.structured_output.trial_lane import TrialLane
from backends.wire import FinishReason, Grammar

if TYPE_CHECKING:
    import xgrammar

COMPILE_S = 10.0
"""A schema of ordinary size takes milliseconds, with a vocabulary of 150,000 some tenths of a second."""
MAX_COMPILE_S = 0.5
"""Processor time of the compilation alone. The worker repeats it beside its engine, which stands still meanwhile."""
LANES = 2
"""Trial compilations at a time. One tenant has one."""
CACHE_BYTES = 256 * 1024 * 1024
_FAILURES = (RuntimeError, MemoryError)
"""Errors of the library about one matcher. They end its sequence, never the step."""
CHARS_A_TOKEN = 3
"""Of a schema's text. What a schema says is longer than the least that satisfies it."""


class XgrammarMatcher:
    """Where one sequence is in its grammar. `pieces` are the vocabulary, where the answer must come to its end in time."""

    def __init__(
        self,
        matcher: "xgrammar.GrammarMatcher",
        grammar: Grammar,
        *,
        vocab_size: int,
        lengths: Lengths,
        pieces: Pieces | None = None,
    ) -> None:
        self._matcher, self._grammar, self._lengths, self.vocab_size = matcher, grammar, lengths, vocab_size
        self._pieces = pieces
        self._length_limiter: LengthLimiter | None = None
        self._stuck = False

    def limit(self, room: int) -> None:
        """The answer has this many tokens at most."""
        if self._pieces is not None and self._lengths.answer < room * self._pieces.longest:
            grammar = self._grammar
            self._length_limiter = LengthLimiter(
                self._pieces,
                room=room,
                most=len(grammar.text) // CHARS_A_TOKEN,
                thinks=grammar.thinks != "no",
                can_jump=self._lengths.part <= MAX_JUMP,
            )

    def settle(self, token: int) -> int | None:
        """What is taken for a token that the mask allowed: itself, unless the answer could then not end within its limit. None
        while that is being searched.
        """
        if self._length_limiter is None or self._stuck:
            return token
        try:
            return self._length_limiter.settle(self._matcher, token)
        except _FAILURES:
            self._stuck = True
            return token

    def accept(self, token: int) -> FinishReason | None:
        """Take a token. Return how the answer ended, if it is over: `length` if its limit ended it, `error` if the grammar does
        not allow the token or allowed none.
        """
        if self._stuck or not self._accepts(token):
            return "error"
        if self._length_limiter is not None:
            self._length_limiter.accepted(token)
        if not self._matcher.is_terminated():
            return None
        return "length" if self.was_led and not self._grammar.fit else "stop"

    def _accepts(self, token: int) -> bool:
        try:
            accepted: bool = self._matcher.accept_token(token)
        except _FAILURES:
            return False
        return accepted

    @property
    def was_led(self) -> bool:
        """Whether its limit changed what was said, so that it could end."""
        return self._length_limiter is not None and self._length_limiter.steered

    def fill(self, masks: Tensor, row: int) -> None:
        """A row that allows no token ends its sequence: the next `accept` returns `error`."""
        try:
            self._matcher.fill_next_token_bitmask(masks, row)
        except _FAILURES:
            self._stuck = True
        else:
            self._stuck = not bool(masks[row].any())


class Masks(NamedTuple):
    """One bit a token, int32 words, for some rows of a step's logits; they are being filled."""

    bits: Tensor
    rows: list[int]
    filled: "Future[None]"

    def apply(self, logits: Tensor) -> Tensor:
        """In place; waits for the filling."""
        import xgrammar

        self.filled.result()
        xgrammar.apply_token_bitmask_inplace(logits, self.bits.to(logits.device), indices=self.rows)
        return logits


class MaskFiller:
    """One thread beside the engine's: what it calls leaves the interpreter to others."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def fill(self, matchers: Sequence[Matcher | None]) -> Masks | None:
        """None where no row has a grammar."""
        rows = [row for row, matcher in enumerate(matchers) if matcher is not None]
        if not rows:
            return None
        words = max(-(-matcher.vocab_size // 32) for matcher in matchers if matcher is not None)
        bits = torch.full((len(matchers), words), -1, dtype=torch.int32)

        def fill() -> None:
            for row in rows:
                matcher = matchers[row]
                assert matcher
                matcher.fill(bits, row)

        return Masks(bits, rows, self._thread.submit(fill))


class Compiled(NamedTuple):
    grammar: "xgrammar.CompiledGrammar"
    lengths: Lengths


class Grammars:
    """One model's. `timeout_s` bounds the wait for a turn, and then the trial compilation of a grammar."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, eos_tokens: Sequence[int], timeout_s: float = COMPILE_S
    ) -> None:
        self._vocab_size, self._timeout_s = vocab_size, timeout_s
        self._tokenizer, self._eos_tokens = tokenizer, list(eos_tokens)
        self._turns = CompileTurns()
        self._cache = GrammarCache[Compiled](CACHE_BYTES)
        self._lock = threading.Lock()
        self._compiler: xgrammar.GrammarCompiler | None = None
        self._pieces: Pieces | None = None
        self._has_threads = False

    def compile(self, grammar: Grammar, ready: Callable[[XgrammarMatcher | Refusal], None], *, tenant: str = "") -> None:
        """`ready` is called once, perhaps on another thread: with a matcher at its start, or why there is none."""
        if (compiled := self._cache.get(tenant, grammar)) is not None:
            ready(self._matcher(grammar, compiled))
            return
        self._start_threads()
        once = threading.Lock()
        busy = Refusal("grammar_busy", f"{grammar.param}: too many grammars wait to be compiled: try again", grammar.param)

        def too_late() -> None:
            if once.acquire(blocking=False):
                ready(busy)

        timer = threading.Timer(self._timeout_s, too_late)
        timer.daemon = True

        def job(lane: TrialLane) -> None:
            timer.cancel()
            if once.acquire(blocking=False):
                ready(self._outcome(lane, tenant, grammar))

        timer.start()
        if not self._turns.add(tenant, job):
            timer.cancel()
            too_late()

    def _start_threads(self) -> None:
        if not self._has_threads:
            self._has_threads = True
            for number in range(LANES):
                threading.Thread(target=self._serve, name=f"grammars {number}", daemon=True).start()

    def _serve(self) -> None:
        lane: TrialLane | None = None
        while True:
            tenant, job = self._turns.next()
            try:
                if lane is None:
                    self._ready_compiler()
                    vocabulary = _vocabulary(self._tokenizer, self._vocab_size, self._eos_tokens)
                    lane = TrialLane(vocabulary, max_s=self._timeout_s)
                job(lane)
            finally:
                self._turns.done(tenant)

    def _outcome(self, lane: TrialLane, tenant: str, grammar: Grammar) -> XgrammarMatcher | Refusal:
        import xgrammar

        try:
            compiled = self._cache.get(tenant, grammar)
            if compiled is None:
                tried = lane.run(grammar)
                if not tried.problem and tried.compile_s > MAX_COMPILE_S:
                    tried = Tried(problem=f"its grammar takes over {MAX_COMPILE_S:g} s to compile: make it smaller")
                if tried.problem:
                    return Refusal("bad_grammar", f"{grammar.param}: {tried.problem}", grammar.param)
                rules = xgrammar.Grammar.deserialize_json(tried.rules)
                lengths = Lengths(tried.answer_bytes, tried.part_bytes)
                compiled = Compiled(self._ready_compiler().compile_grammar(rules), lengths)
                self._cache.put(tenant, grammar, compiled, compiled.grammar.memory_size_bytes)
            return self._matcher(grammar, compiled)
        except (OSError, MemoryError, msgspec.DecodeError) as error:  # the next trial starts a new process
            return Refusal("grammar_busy", f"{grammar.param}: {error}: try again", grammar.param)
        except BAD_GRAMMAR as error:
            return Refusal("bad_grammar", f"{grammar.param}: {reason_of(error)}", grammar.param)

    def _matcher(self, grammar: Grammar, compiled: Compiled) -> XgrammarMatcher:
        import xgrammar

        pieces = self._pieces if grammar.kind in ("json", "schema") else None
        matcher = xgrammar.GrammarMatcher(compiled.grammar)
        return XgrammarMatcher(matcher, grammar, vocab_size=self._vocab_size, lengths=compiled.lengths, pieces=pieces)

    def _ready_compiler(self) -> "xgrammar.GrammarCompiler":
        with self._lock:
            if self._compiler is None:
                info = tokenizer_info(_vocabulary(self._tokenizer, self._vocab_size, self._eos_tokens))
                self._pieces = Pieces(info.decoded_vocab)
                self._compiler = compiler_for(info)
            return self._compiler


def _vocabulary(tokenizer: Tokenizer, size: int, stop_tokens: list[int]) -> Vocabulary:
    """By id. Special tokens are no text: they are left empty, and a grammar never allows them."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = range(tokenizer.get_vocab_size())
    texts = ["" if i in special else tokenizer.id_to_token(i) or "" for i in ids]
    return Vocabulary(texts=texts, kind=_vocabulary_type(tokenizer).value, size=size, stop_tokens=stop_tokens)


def _vocabulary_type(tokenizer: Tokenizer) -> "xgrammar.VocabType":
    """How the tokenizer writes bytes that are no text."""
    import xgrammar

    decoder = json.dumps(json.loads(tokenizer.to_str())["decoder"])
    if '"ByteLevel"' in decoder:
        return xgrammar.VocabType.BYTE_LEVEL
    return xgrammar.VocabType.BYTE_FALLBACK if '"ByteFallback"' in decoder else xgrammar.VocabType.RAW
