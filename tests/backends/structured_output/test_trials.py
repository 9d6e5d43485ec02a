"""Grammars are tried in a process with bounds; tenants take turns; one that waits too long is told to try again."""

import json
import threading
from typing import Any

import pytest

from backends.engine.request_limits import Refusal
from backends.structured_output import trial_lane
from backends.structured_output.compile_turns import MAX_WAITING, CompileTurns
from backends.structured_output.grammar import Grammars, XgrammarMatcher, _vocabulary
from backends.structured_output.grammar_cache import GrammarCache
from backends.structured_output.trial_lane import TrialLane
from backends.wire import Finished, Grammar
from gateway.errors import NoWorker
from gateway.pipeline.attempts import failure_of
from tests.backends.structured_output.test_grammar import EOS, TOKENIZER, VOCABULARY, compiled


def wide(num: int) -> Grammar:
    properties = {f"property_{number}": {"type": "integer"} for number in range(num)}
    return Grammar(kind="schema", param="p", text=json.dumps({"type": "object", "properties": properties}))


SMALL = Grammar(kind="schema", param="p", text='{"type": "boolean"}')


def test_a_trial_that_passes_a_bound_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = TrialLane(_vocabulary(TOKENIZER, VOCABULARY, [EOS]), max_s=1.0)
    assert "within 1 s" in lane.run(wide(800)).problem
    assert not lane.run(SMALL).problem
    monkeypatch.setattr(trial_lane, "MAX_BYTES", 4 << 20)
    patient = TrialLane(_vocabulary(TOKENIZER, VOCABULARY, [EOS]), max_s=60.0)
    assert "memory" in (problem := patient.run(wide(300)).problem) or "MB" in problem
    monkeypatch.undo()
    assert not patient.run(SMALL).problem
    assert patient._process
    patient._process.kill()
    patient._process.wait()
    assert not patient.run(SMALL).problem


def test_a_large_grammar_of_one_tenant_delays_no_grammar_of_another() -> None:
    grammars = Grammars(TOKENIZER, vocab_size=VOCABULARY, eos_tokens=[EOS], timeout_s=3.0)
    assert isinstance(compiled(grammars, SMALL), XgrammarMatcher)
    outcomes: list[Any] = []
    some = threading.Condition()

    def ready(outcome: Any) -> None:
        with some:
            outcomes.append(outcome)
            some.notify()

    for number in range(4):
        grammars.compile(wide(900 + number), ready, tenant="a")
    other: list[Any] = []
    done = threading.Event()
    grammars.compile(SMALL, lambda outcome: (other.append(outcome), done.set())[0], tenant="b")
    assert done.wait(30) and isinstance(other[0], XgrammarMatcher)
    with some:
        assert some.wait_for(lambda: len(outcomes) == 4, 60)
    assert {outcome.code for outcome in outcomes if isinstance(outcome, Refusal)} == {"bad_grammar", "grammar_busy"}


def test_a_caller_that_waits_behind_others_gets_a_503_with_a_time() -> None:
    error = failure_of(Finished(request=1, reason="refused", error="p: busy", error_code="grammar_busy", error_param="p"))
    assert isinstance(error, NoWorker) and error.status == 503 and error.retry_after_s


def test_turns_go_round_and_a_tenant_has_one_at_a_time() -> None:
    turns, ran = CompileTurns(), list[str]()
    for name in ("a1", "a2", "b1", "a3", "c1"):
        assert turns.add(name[0], lambda lane, name=name: ran.append(name))
    first, second = turns.next(), turns.next()
    assert (first[0], second[0]) == ("a", "b")
    turns.done("a")
    assert turns.next()[0] == "c"
    assert turns.next()[0] == "a"
    assert all(turns.add("z", first[1]) for _ in range(MAX_WAITING)) and not turns.add("z", first[1])


def test_a_cache_keeps_tenants_apart_and_bounds_each() -> None:
    cache = GrammarCache[int](100)
    grammars = [Grammar(kind="regex", param="p", text=f"a{number}") for number in range(5)]
    cache.put("b", grammars[0], 7, 20)
    for number, grammar in enumerate(grammars):
        cache.put("a", grammar, number, 20)
    assert [cache.get("a", grammar) for grammar in grammars] == [None, None, None, 3, 4]
    assert cache.get("b", grammars[0]) == 7 and cache.get("b", grammars[4]) is None
    cache.put("c", grammars[0], 1, 40)
    assert cache.get("b", grammars[0]) == 7 and cache.get("c", grammars[0]) == 1
