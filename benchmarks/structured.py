"""Claim: an answer with constrained output costs almost no time, and always has the required form.

Speed: eight sequences at once on nano, one step after the other as the engine runs them, up to 192 tokens each and until one
ends. Three arms: free, constrained to a JSON Schema (a long list of records), and constrained with a limit so near that every
token is checked for whether the answer can still end. They alternate, best of the rounds of each. Form: 200 generated schemas,
requested in words and strictly constrained, to fit into 512 tokens (`fit`). Reported: how many end, how many of these only
because they were closed near the limit, and whether each that ends satisfies `jsonschema`. Temperature is 1 with a frequency
penalty of 0.5: a small model outside its training data fills an endless string with one word when greedy.
"""

import json
import random
import threading
import time
from array import array
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema

from backends.config import Settings
from backends.structured_output.grammar import XgrammarMatcher
from backends.wire import Grammar, Sampling, Submit
from backends.worker.startup import Started, start_engine
from backends.zoo.vocabulary import sentence
from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.schemas import schema_for
from gateway.request import Message
from gateway.text.model_text import ModelText

BATCH, TOKENS, MAX_TOKENS = 8, 192, 512
RECORDS = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}, "paid": {"type": "boolean"}},
        "required": ["name", "count", "paid"],
        "additionalProperties": False,
    },
}


class Ended(NamedTuple):
    reason: str
    text: str


class Bench:
    def __init__(self, model: Path) -> None:
        settings = Settings(model=model, name=model.name, listen="unix:///unused", max_sequences=BATCH)
        self.started: Started = start_engine(settings, progress)
        self.text = ModelText.from_directory(model)
        self._next = 0

    def matcher(self, schema: dict[str, Any], *, fit: bool = False) -> XgrammarMatcher:
        outcomes: list[Any] = []
        done = threading.Event()

        def ready(outcome: Any) -> None:
            outcomes.append(outcome)
            done.set()

        self.started.grammars.compile(Grammar(kind="schema", param="schema", text=json.dumps(schema), fit=fit), ready)
        done.wait()
        if not isinstance(outcomes[0], XgrammarMatcher):
            raise ValueError(outcomes[0].message)
        return outcomes[0]

    def run(self, prompts: Sequence[str], matchers: Sequence[XgrammarMatcher | None], sampling: Sampling) -> list[Ended]:
        """Run one batch, from its first step to its last."""
        engine = self.started.engine
        texts = [""] * len(prompts)
        reasons = [""] * len(prompts)
        first = self._next
        for prompt, matcher in zip(prompts, matchers, strict=True):
            engine.submit("bench", Submit(request=self._next, prompt=self._ids(prompt), sampling=sampling), matcher)
            self._next += 1
        while engine.has_work:
            engine.step()
            output = engine.take_output()
            for piece in output.pieces.get("bench", ()):
                texts[piece.request - first] += piece.text
            for _, finished in output.finished:
                reasons[finished.request - first] = finished.reason
        return [Ended(reason, text) for reason, text in zip(reasons, texts, strict=True)]

    def tokens_per_s(self, prompts: Sequence[str], matchers: Sequence[XgrammarMatcher | None], sampling: Sampling) -> float:
        """Return the rate of one batch, until the first sequence ends."""
        engine, first, steps = self.started.engine, self._next, 0
        for prompt, matcher in zip(prompts, matchers, strict=True):
            engine.submit("bench", Submit(request=self._next, prompt=self._ids(prompt), sampling=sampling), matcher)
            self._next += 1
        began = time.perf_counter()
        while not engine.take_output().finished:
            engine.step()
            steps += 1
        took_s = time.perf_counter() - began
        for request in range(first, self._next):
            engine.abort("bench", request)
        engine.take_output()
        return len(prompts) * steps / took_s

    def _ids(self, prompt: str) -> bytes:
        rendered = self.text.render([Message(role="user", content=prompt)], (), now=datetime(2026, 1, 1))
        ids: array[int] = self.text.encode(rendered)
        return ids.tobytes()


def main() -> None:
    args = arguments(__doc__).parse_args()
    bench = Bench(ROOT / "backends" / "zoo" / "nano")
    rounds, num_schemas = (2, 24) if args.quick else (9, 200)
    free, held, near = _speed(bench, rounds)
    progress(f"free {free:,.0f}, held {held:,.0f}, near the limit {near:,.0f} tokens/s at batch {BATCH}")
    ended, led, valid, failures = _forms(bench, num_schemas)
    print(table(("schemas", "ended", "of these led to it", "valid of these"), [(num_schemas, ended, led, valid)]))
    results = {
        "tokens_per_s_free": free,
        "tokens_per_s_held": held,
        "tokens_per_s_near_the_limit": near,
        "schemas": num_schemas,
        "ended_by_stop": ended,
        "led_to_their_end": led,
        "valid_of_ended": valid,
        "failures": failures[:5],
    }
    targets = [
        Target("held_over_free_at_batch_8", held / free, ">=", 0.95),
        Target("near_the_limit_over_free_at_batch_8", near / free, ">=", 0.95),
        Target("ended_within_512_tokens", ended / num_schemas, ">=", 0.95),
        Target("valid_of_ended", valid / max(1, ended), ">=", 1.0),
    ]
    finish("structured", results, targets)


def _speed(bench: Bench, rounds: int) -> tuple[float, float, float]:
    """Return tokens a second: free, constrained, and constrained near the limit. A first round of each warms up."""
    rng = random.Random(0)
    prompts = [f"List records of {sentence(rng)}" for _ in range(BATCH)]
    best = [0.0, 0.0, 0.0]
    for number in range(rounds + 1):
        for kind, schema in enumerate((None, RECORDS, {**RECORDS, "minItems": 6})):
            matchers = [bench.matcher(schema) if schema else None for _ in prompts]
            sampling = Sampling(max_tokens=TOKENS, ignore_eos=True, temperature=1.0, seed=number)
            speed = bench.tokens_per_s(prompts, matchers, sampling)
            if number:
                best[kind] = max(best[kind], speed)
    free, held, near = best
    return free, held, near


def _forms(bench: Bench, count: int) -> tuple[int, int, int, list[str]]:
    """Return how many ended, how many of these were closed early, how many are valid, and the problems of the others."""
    ended = led = valid = 0
    failures: list[str] = []
    for start in range(0, count, BATCH):
        schemas = [schema_for(seed) for seed in range(start, min(start + BATCH, count))]
        prompts = [f"Answer with JSON that satisfies this schema: {json.dumps(schema)}" for schema in schemas]
        matchers = [bench.matcher(schema, fit=True) for schema in schemas]
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=1.0, frequency_penalty=0.5, seed=start)
        answers = bench.run(prompts, matchers, sampling)
        for schema, matcher, answer in zip(schemas, matchers, answers, strict=True):
            if answer.reason != "stop":
                progress(f"did not end: {json.dumps(schema)} -> {answer.text[:200]}")
                continue
            ended += 1
            led += matcher.was_led
            problem = _problem(schema, answer.text)
            valid += problem is None
            if problem is not None:
                failures.append(f"{json.dumps(schema)} -> {answer.text[:300]}: {problem}")
    return ended, led, valid, failures


def _problem(schema: dict[str, Any], text: str) -> str | None:
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return None


if __name__ == "__main__":
    main()
