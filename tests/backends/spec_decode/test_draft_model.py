"""A draft model changes nothing of what is said, however well or badly it guesses."""

import random
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.work import Runner
from backends.models.linear import LinearChooser
from backends.models.loader import open_model
from backends.runners.native_library import Library
from backends.runners.registry import cpu_runner
from backends.spec_decode.draft_length import MAX_DRAFTS
from backends.spec_decode.draft_model import DraftModel
from backends.spec_decode.speculator import Tally
from backends.spec_decode.state import DraftCost
from backends.wire import Sampling, Submit
from tests.backends.conftest import MakeCheckpoint
from tests.backends.fakes import Ticks
from tests.backends.models.test_llama import CharacterDecoder
from tests.backends.naive import Naive

LIMITS = RequestLimits(
    max_context=200,
    vocab_size=320,
    num_pages=60,
    page_size=4,
    max_sequences=3,
    prefill_tokens=16,
    eos_tokens=frozenset({0}),
    kv_bytes=1,
    fingerprint="f",
)


def runner_of(directory: Path, library: Library | None) -> Runner:
    model = open_model(directory, LinearChooser("float32", torch.float32, "cpu", library), dtype=torch.float32, device="cpu")
    kv = model.kv(num_pages=LIMITS.num_pages, page_size=LIMITS.page_size, dtype=torch.float32, device="cpu")
    return cpu_runner(model.model, kv, dtype=torch.float32, library=library)


def engine_of(directory: Path, draft: Path | None, library: Library | None) -> Engine:
    """Guesses are free in its eyes, so it always guesses."""
    drafter = None
    if draft is not None:
        shape: dict[str, Any] = {"num_pages": LIMITS.num_pages, "page_size": LIMITS.page_size, "kv_bytes": 1}
        most = LIMITS.prefill_tokens
        drafter = DraftModel(runner_of(draft, library), most_tokens=most, longest=LIMITS.longest, clock_ns=Ticks(), **shape)
        drafter.priced = lambda of, sequence, num_sequences, context: DraftCost(1.0, 0.0, 0.0)  # type: ignore[method-assign]
    rng = random.Random(0)
    return Engine(runner_of(directory, library), CharacterDecoder(), LIMITS, clock_ns=Ticks(), rng=rng, drafter=drafter)


def said(engine: Engine, prompts: list[list[int]], **sampling: Any) -> tuple[dict[int, str], int]:
    """What was said to each, and in how many steps."""
    text, steps = dict.fromkeys(range(len(prompts)), ""), 0
    for request, prompt in enumerate(prompts):
        options = Sampling(**{"max_tokens": 30, "seed": request, "ignore_eos": True, **sampling})
        engine.submit("me", Submit(request=request, prompt=array("I", prompt).tobytes(), sampling=options))
        while len(engine.scheduler.waiting) >= LIMITS.max_sequences:
            engine.step()
            steps += 1
    while engine.has_work:
        engine.step()
        engine.check()
        steps += 1
    output = engine.take_output()
    for piece in output.pieces["me"]:
        text[piece.request] += piece.text
    assert all(end.reason in ("length", "stop") for _, end in output.finished) and len(output.finished) == len(prompts)
    return text, steps


def tally(engine: Engine) -> Tally:
    assert engine.speculator is not None
    return engine.speculator.tallies["draft"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_draft_equal_to_the_target_is_nearly_always_accepted(
    library: Library | None, make_checkpoint: MakeCheckpoint, temperature: float
) -> None:
    directory = make_checkpoint()
    prompts = [[1 + (7 * i + j) % 300 for j in range(20)] for i in range(3)]
    plain, plain_steps = said(engine_of(directory, None, library), prompts, temperature=temperature)
    engine = engine_of(directory, directory, library)
    guessed, steps = said(engine, prompts, temperature=temperature)
    assert guessed == plain
    assert tally(engine).accepted > 0.9 * tally(engine).drafted > 0 and steps < plain_steps / 2


def apart(directory: Path, prompt: list[int], one: str, other: str) -> float:
    """How far apart the logits are of the tokens where two texts first differ: a draw goes through tokens in the order of
    their probabilities, and a stretch is rounded in another way than its tokens one by one."""
    at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    logits = Naive(directory, torch.float32).logits(prompt + [ord(letter) - 0x4E00 for letter in one[:at]])[-1]
    return abs(float(logits[ord(one[at]) - 0x4E00] - logits[ord(other[at]) - 0x4E00]))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_poor_draft_model_does_not_change_the_text(
    library: Library | None, make_checkpoint: MakeCheckpoint, temperature: float
) -> None:
    """With shared prefixes, and more sequences than fit, so that some are preempted."""
    directory, draft = make_checkpoint(), make_checkpoint(seed=1, num_hidden_layers=1)
    prompts = [[1 + j % 50 for j in range(8 + 5 * i)] for i in range(6)]
    plain, _ = said(engine_of(directory, None, library), prompts, temperature=temperature, max_tokens=60)
    engine = engine_of(directory, draft, library)
    guessed, _ = said(engine, prompts, temperature=temperature, max_tokens=60)
    assert tally(engine).drafted > MAX_DRAFTS
    for request, text in plain.items():
        if guessed[request] != text:
            assert temperature and apart(directory, prompts[request], text, guessed[request]) < 1e-4


def test_sampled_tokens_are_distributed_as_the_model_says(library: Library | None, make_checkpoint: MakeCheckpoint) -> None:
    """Of the second token after a prompt, which guesses take part in, against the model's own probabilities: chi-square."""
    directory, draft, count = make_checkpoint(), make_checkpoint(seed=1), 600
    prompt, temperature, top_k = [3, 1, 4, 1, 5], 1.5, 2
    engine = engine_of(directory, draft, library)
    found = Counter[str]()
    for start in range(0, count, 3):
        for request in range(start, start + 3):
            sampling = Sampling(max_tokens=3, temperature=temperature, top_k=top_k, seed=request, ignore_eos=True)
            engine.submit("me", Submit(request=request, prompt=array("I", prompt).tobytes(), sampling=sampling))
        while engine.has_work:
            engine.step()
        text = dict[int, str]()
        for piece in engine.take_output().pieces["me"]:
            text[piece.request] = text.get(piece.request, "") + piece.text
        found.update(one[:2] for one in text.values())
    expected = pairs(directory, prompt, temperature, top_k)
    assert set(found) <= set(expected) and tally(engine).drafted > count / 2
    chi_square = sum((found[pair] - count * share) ** 2 / (count * share) for pair, share in expected.items())
    assert chi_square < 16.3, (found, expected)  # 3 degrees of freedom: exceeded once in a thousand, and the seeds are fixed


def pairs(directory: Path, prompt: list[int], temperature: float, top_k: int) -> dict[str, float]:
    """How likely each pair of first tokens is, by transformers."""
    from transformers import AutoModelForCausalLM

    model, decoder = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(), CharacterDecoder()

    def shares(ids: list[int]) -> list[tuple[int, float]]:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        values, best = logits.topk(top_k)
        return list(zip(best.tolist(), torch.softmax(values / temperature, -1).tolist(), strict=True))

    return {
        decoder.decode([first, second]): share * then
        for first, share in shares(prompt)
        for second, then in shares([*prompt, first])
    }


def test_expensive_draft_turns_speculation_off() -> None:
    runner: Any = None
    drafter = DraftModel(runner, num_pages=4, page_size=4, most_tokens=8, longest=99, kv_bytes=1, clock_ns=Ticks())
    engine = Engine(runner, CharacterDecoder(), LIMITS, clock_ns=Ticks(), rng=random.Random(0), drafter=drafter)
    engine.submit("me", Submit(request=1, prompt=array("I", [1] * 20).tobytes(), sampling=Sampling(max_tokens=9)))
    (sequence,) = engine.scheduler.waiting
    free = DraftCost(1e-3, 1e-5, 0.0)
    assert drafter.priced(free, sequence, 1, 20) == free
    drafter.step_cost._fit = [5e-4, 0.0, 1e-4, 2e-4, 1e-5, 0.0, 0.0, 0.0]
    alone, many = drafter.priced(free, sequence, 1, 20), drafter.priced(free, sequence, 16, 20)
    assert alone.draft == pytest.approx(1e-5 + 6e-4) and many.draft < alone.draft
    assert alone.first == pytest.approx(2e-4 + 19 * 1e-5 / 9)
