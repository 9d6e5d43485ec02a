"""Generated schemas, regular expressions and tool sets, run in a child process with bounded memory: the engine lives.

The default is 200 cases. `HEADWAY_FUZZ_GRAMMARS=2000` runs more, from the same seed.
"""

import json
import os
import random
import resource
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from backends.config import Settings
from backends.structured_output.grammar import XgrammarMatcher
from backends.wire import CallForm, Grammar, Sampling, Submit
from backends.worker.startup import Started, start_engine

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 12 << 30
"""Address space of the child: torch reserves some gigabytes of it."""
BATCH = 8
MAX_STEPS = 2_000
ATOMS = ["a", "b", "[ab]", "[^a]", ".", r"\d", r"[^\s\S]", r"[^\d\D]", r"\w", "é", "[à-ü]", r"\.", "中"]
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "{0}", "{2,}", "{500}", "{0,60}"]
SUFFIXES = [{}, {"minLength": 2000}, {"minLength": 1_000_000}, {"maxLength": 3}, {"minLength": 5, "maxLength": 4}]


def regex(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if depth > 4 or kind < 0.3:
        return rng.choice(ATOMS)
    if kind < 0.55:
        return regex(rng, depth + 1) + regex(rng, depth + 1)
    if kind < 0.75:
        return "(" + "|".join(regex(rng, depth + 1) for _ in range(rng.randint(2, 3))) + ")"
    return f"({regex(rng, depth + 1)})" + rng.choice(REPEATS)


def schema(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(11 if depth < 4 else 6)
    match kind:
        case 0:
            return {"type": "string", **rng.choice(SUFFIXES)}
        case 1:
            return {"type": "integer", **rng.choice([{}, {"minimum": 5, "maximum": 4}, {"exclusiveMinimum": -3}])}
        case 2:
            return {"enum": [rng.choice(["x", 1, None, True, [], {"a": 1}]) for _ in range(rng.randint(1, 3))]}
        case 3:
            return {"type": "string", "pattern": regex(rng, 2)}
        case 4:
            return {"$ref": rng.choice(["#", "#/$defs/a", "#/$defs/b"])}
        case 5:
            return {"type": rng.choice(["null", "boolean", "number"])}
        case 6 | 7:
            names = rng.sample("abcdefgh", rng.randint(0, 5))
            required = [name for name in names if rng.random() < 0.6]
            properties = {name: schema(rng, depth + 1) for name in names}
            more = rng.choice([False, False, True, {"$ref": "#"}])
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}
        case 8:
            bounds = rng.choice([{}, {"minItems": 1}, {"minItems": 3, "maxItems": 2}, {"minItems": 100_000}, {"maxItems": 2}])
            return {"type": "array", "items": schema(rng, depth + 1), **bounds}
        case _:
            return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def grammar(rng: random.Random) -> Grammar:
    def text() -> str:
        return json.dumps({"$defs": {"a": schema(rng, 2), "b": schema(rng, 2)}} | schema(rng))

    thinks = rng.choice(["no", "no", "opens", "inside"])
    match rng.randrange(4):
        case 0:
            return Grammar(kind="regex", param="p", text=regex(rng), thinks=thinks)
        case 1 | 2:
            return Grammar(kind="schema", param="p", text=text(), thinks=thinks)
        case _:
            calls = tuple(CallForm(f"<t{number}>", text(), "</t>") for number in range(rng.randint(1, 3)))
            return Grammar(kind="calls", param="p", calls=calls, trigger="<t", required=rng.random() < 0.5, thinks=thinks)


def compiled(started: Started, one: Grammar) -> Any:
    outcomes: list[Any] = []
    done = threading.Event()
    started.grammars.compile(one, lambda outcome: (outcomes.append(outcome), done.set())[0])
    assert done.wait(60), one
    return outcomes[0]


def run(num_cases: int) -> Counter[str]:
    settings = Settings(
        model=ROOT / "backends" / "zoo" / "pico", name="pico", listen="unix:///unused", linear="float32", kv_tokens=16_384
    )
    started = start_engine(settings, lambda line: None)
    engine, ends = started.engine, Counter[str]()
    for first in range(0, num_cases, BATCH):
        for number in range(first, min(first + BATCH, num_cases)):
            rng = random.Random(number)
            outcome = compiled(started, grammar(rng))
            if not isinstance(outcome, XgrammarMatcher):
                ends[outcome.code] += 1
                continue
            prompt = b"".join(rng.randrange(7, 1500).to_bytes(4, "little") for _ in range(20))
            held = Sampling(max_tokens=rng.choice([5, 40, 200]), temperature=1.0, seed=number)
            engine.submit("held", Submit(request=number, prompt=prompt, sampling=held), outcome)
        free = Sampling(max_tokens=20, ignore_eos=True)
        engine.submit("free", Submit(request=first, prompt=(9).to_bytes(4, "little") * 9, sampling=free))
        for _ in range(MAX_STEPS):
            if not engine.has_work:
                break
            engine.step()
        assert not engine.has_work, f"cases from {first} on do not end"
        engine.check()
        finished = [end for _, end in engine.take_output().finished]
        assert next(end for end in finished if end.num_prompt_tokens == 9).num_output_tokens == 20
        ends.update(f"{end.reason} {end.error_code}".strip() for end in finished)
    return ends


@pytest.mark.timeout(3600)
def test_engine_lives_through_generated_grammars() -> None:
    num_cases = os.environ.get("HEADWAY_FUZZ_GRAMMARS", "200")
    command = [sys.executable, "-m", "tests.contract.test_grammar_fuzz", num_cases]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3500)
    assert child.returncode == 0, child.stderr[-3000:]
    ends = json.loads(child.stdout.splitlines()[-1])
    assert ends["stop"] > int(num_cases) // 10 and ends["bad_grammar"] > 0
    assert "error" not in ends


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps(run(int(sys.argv[1]))))
