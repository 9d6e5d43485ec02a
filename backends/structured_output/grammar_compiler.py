"""Checks and compiles a grammar by xgrammar. The worker and the process for trial compilations use the same functions.

xgrammar is loaded with the first grammar.
"""

import json
import time
from typing import TYPE_CHECKING, Any

from backends.structured_output.grammar_rules import GrammarRules, Lengths
from backends.structured_output.json_pattern import with_patterns_spelled_out
from backends.structured_output.schema_bounds import bounded, bounded_rules
from backends.structured_output.structural_tag import ANY_OBJECT, structural_tag
from backends.structured_output.trial import Tried, Vocabulary
from backends.wire import Grammar

if TYPE_CHECKING:
    import xgrammar

SEPARATORS = (", ", ": ")
BAD_GRAMMAR = (RuntimeError, ValueError, TypeError, LookupError)
"""Errors of the library about a grammar that it cannot take."""


def tokenizer_info(vocabulary: Vocabulary) -> "xgrammar.TokenizerInfo":
    import xgrammar

    kind, stop = xgrammar.VocabType(vocabulary.kind), vocabulary.stop_tokens
    return xgrammar.TokenizerInfo(vocabulary.texts, kind, vocab_size=vocabulary.size, stop_token_ids=stop)


def compiler_for(info: "xgrammar.TokenizerInfo") -> "xgrammar.GrammarCompiler":
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
    except (MemoryError, *BAD_GRAMMAR) as error:
        is_memory = isinstance(error, MemoryError) or "bad_alloc" in str(error)
        return Tried(problem="its grammar takes too much memory: make it smaller" if is_memory else reason_of(error))


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


def reason_of(error: Exception) -> str:
    """The library's first line, without where in its source it was."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    _, source, said = lines[0].rpartition(".cc:")
    return said.partition(": ")[2] if source else lines[0]
