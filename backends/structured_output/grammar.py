"""Grammars of answers as token masks, by xgrammar: compiled on a few threads, filled while the forward pass runs.

xgrammar is loaded with the first grammar: a worker that never gets one starts without it.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from backends.engine.request_limits import Refusal
from backends.engine.sequence import Matcher
from backends.structured_output.compile_turns import CompileTurns
from backends.structured_output.grammar_cache import GrammarCache
from backends.structured_output.grammar_rules import GrammarRules, Lengths
from backends.structured_output.json_pattern import with_patterns_spelled_out
from backends.structured_output.length_limit import MAX_JUMP, LengthLimiter, Pieces
from backends.structured_output.schema_bounds import bounded, bounded_rules
from backends.structured_output.structural_tag import ANY_OBJECT, structural_tag
from backends.structured_output.trial_lane import TrialLane
from backends.structured_output.trial_process import Tried, Vocabulary
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
SEPARATORS = (", ", ": ")
_FAILURES = (RuntimeError, MemoryError)
"""Errors of the library about one matcher. They end its sequence, never the step."""
_BAD_GRAMMAR = (RuntimeError, ValueError, TypeError, LookupError)
"""Errors of the library about a grammar that it cannot take."""
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
        except _BAD_GRAMMAR as error:
            return Refusal("bad_grammar", f"{grammar.param}: {_reason(error)}", grammar.param)

    def _matcher(self, grammar: Grammar, compiled: Compiled) -> XgrammarMatcher:
        import xgrammar

        pieces = self._pieces if grammar.kind in ("json", "schema") else None
        matcher = xgrammar.GrammarMatcher(compiled.grammar)
        return XgrammarMatcher(matcher, grammar, vocab_size=self._vocab_size, lengths=compiled.lengths, pieces=pieces)

    def _ready_compiler(self) -> "xgrammar.GrammarCompiler":
        with self._lock:
            if self._compiler is None:
                info = _tokenizer_info(_vocabulary(self._tokenizer, self._vocab_size, self._eos_tokens))
                self._pieces = Pieces(info.decoded_vocab)
                self._compiler = _compiler(info)
            return self._compiler


def compiler_of(vocabulary: Vocabulary) -> "xgrammar.GrammarCompiler":
    return _compiler(_tokenizer_info(vocabulary))


def _tokenizer_info(vocabulary: Vocabulary) -> "xgrammar.TokenizerInfo":
    import xgrammar

    kind, stop = xgrammar.VocabType(vocabulary.kind), vocabulary.stop_tokens
    return xgrammar.TokenizerInfo(vocabulary.texts, kind, vocab_size=vocabulary.size, stop_token_ids=stop)


def _compiler(info: "xgrammar.TokenizerInfo") -> "xgrammar.GrammarCompiler":
    import xgrammar

    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def try_grammar(compiler: "xgrammar.GrammarCompiler", grammar: Grammar) -> Tried:
    """Check and compile a grammar. Called in a process of its own."""
    try:
        rules, lengths = _checked(grammar)
        began = time.process_time()
        compiler.compile_grammar(rules)
        compile_s = time.process_time() - began
        return Tried(rules=rules.serialize_json(), answer_bytes=lengths.answer, part_bytes=lengths.part, compile_s=compile_s)
    except (MemoryError, *_BAD_GRAMMAR) as error:
        is_memory = isinstance(error, MemoryError) or "bad_alloc" in str(error)
        return Tried(problem="its grammar takes too much memory: make it smaller" if is_memory else _reason(error))


def _checked(grammar: Grammar) -> tuple["xgrammar.Grammar", Lengths]:
    """Return the grammar without options that no text completes. Of a regular expression nothing is dropped: that raises
    ValueError.
    """
    import xgrammar

    checked = xgrammar.Grammar.from_ebnf(_rules_of(grammar))
    rules = GrammarRules(checked.serialize_json())
    if rules.check(may_prune=grammar.kind != "regex"):
        checked = xgrammar.Grammar.deserialize_json(rules.serialized())
    return checked, rules.lengths()


def _rules_of(grammar: Grammar) -> str:
    """The grammar as xgrammar's EBNF."""
    import xgrammar

    if grammar.thinks != "no" or grammar.kind == "calls":
        return _tagged_rules(structural_tag(grammar))
    if grammar.kind == "regex":
        return str(xgrammar.Grammar.from_regex(grammar.text))
    return _rules(bounded(json.loads(grammar.text)) if grammar.kind == "schema" else ANY_OBJECT)


def _rules(schema: Any) -> str:
    """A JSON Schema as xgrammar's EBNF, with our bounds."""
    import xgrammar

    grammar = xgrammar.Grammar.from_json_schema(
        json.dumps(schema), any_whitespace=False, separators=SEPARATORS, strict_mode=False
    )
    return with_patterns_spelled_out(bounded_rules(str(grammar)))


def _tagged_rules(tag: Any) -> str:
    import xgrammar

    return with_patterns_spelled_out(bounded_rules(str(xgrammar.Grammar.from_structural_tag(json.dumps(tag)))))


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


def _reason(error: Exception) -> str:
    """The library's first line, without where in its source it was."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    _, source, said = lines[0].rpartition(".cc:")
    return said.partition(": ")[2] if source else lines[0]
