"""Answers of a real engine that are held to a schema satisfy it, alone and beside free ones."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backends.config import Settings
from backends.structured_output.grammar import XgrammarMatcher
from backends.structured_output.length_limit import STEP_WORK, LengthLimiter
from backends.wire import Grammar, Sampling, Submit
from backends.worker.startup import Started, start_engine
from benchmarks.schemas import schema_for

PICO = Path(__file__).parents[3] / "backends" / "zoo" / "pico"
SCHEMAS = [schema_for(seed) for seed in range(1000, 1016)]


@pytest.fixture(scope="module")
def started() -> Started:
    settings = Settings(model=PICO, name="pico", listen="unix:///unused", linear="float32", kv_tokens=32_768, max_sequences=32)
    return start_engine(settings, lambda line: None)


def matcher(started: Started, schema: dict[str, Any]) -> XgrammarMatcher:
    outcomes: list[Any] = []
    done = threading.Event()
    grammar = Grammar(kind="schema", param="response_format", text=json.dumps(schema))
    started.grammars.compile(grammar, lambda outcome: (outcomes.append(outcome), done.set())[0])
    assert done.wait(30)
    assert isinstance(outcomes[0], XgrammarMatcher), outcomes[0]
    return outcomes[0]


def test_every_answer_that_ends_satisfies_its_schema(started: Started) -> None:
    engine = started.engine
    rng = random.Random(5)
    for number, schema in enumerate(SCHEMAS):
        prompt = b"".join(rng.randrange(7, 1500).to_bytes(4, "little") for _ in range(30))
        held = Sampling(max_tokens=400, temperature=1.0, frequency_penalty=0.7, seed=number)
        engine.submit("held", Submit(request=number, prompt=prompt, sampling=held), matcher(started, schema))
        free = Sampling(max_tokens=20, ignore_eos=True)
        engine.submit("free", Submit(request=number, prompt=prompt, sampling=free))
    texts = [""] * len(SCHEMAS)
    reasons: dict[int, str] = {}
    while engine.has_work:
        engine.step()
        output = engine.take_output()
        for piece in output.pieces.get("held", ()):
            texts[piece.request] += piece.text
        reasons |= {finished.request: finished.reason for owner, finished in output.finished if owner == "held"}
    engine.check()
    ended = [number for number, reason in reasons.items() if reason == "stop"]
    assert "refused" not in reasons.values() and len(ended) >= len(SCHEMAS) // 2
    for number in ended:
        jsonschema.validate(json.loads(texts[number]), SCHEMAS[number])


def essay(least: int) -> dict[str, Any]:
    text = {"type": "string", "minLength": least}
    return {"type": "object", "properties": {"essay": text}, "required": ["essay"], "additionalProperties": False}


@pytest.mark.parametrize("least", [600, 3000, 1_000_000])
def test_a_bystander_gains_a_token_in_every_step_beside_a_long_text(
    started: Started, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompt = started.engine, (9).to_bytes(4, "little") * 20
    works: list[int] = []
    search = LengthLimiter.settle

    def counted(limiter: LengthLimiter, *args: Any) -> int | None:
        begun = limiter.work_done
        settled = search(limiter, *args)
        works.append(limiter.work_done - begun)
        return settled

    monkeypatch.setattr(LengthLimiter, "settle", counted)
    held = Sampling(max_tokens=1000, temperature=1.0, seed=1)
    engine.submit("held", Submit(request=1, prompt=prompt, sampling=held), matcher(started, essay(least)))
    engine.submit("free", Submit(request=1, prompt=prompt, sampling=Sampling(max_tokens=200, ignore_eos=True)))
    engine.step()
    gaps, since = list[int](), 0
    while engine.has_work:
        engine.step()
        since += 1
        output = engine.take_output()
        if output.pieces.get("free"):
            gaps.append(since)
            since = 0
        if any(owner == "free" for owner, _ in output.finished):
            engine.abort("held", 1)
            engine.take_output()
    assert len(gaps) > 100 and max(gaps) <= 3  # a token of half a character has no text
    assert max(works, default=0) <= 2 * STEP_WORK
    assert bool(works) is (least < 1_000_000)
