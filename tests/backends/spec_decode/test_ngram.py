"""Guesses change nothing of what is said, only how many steps it takes; and they stop where they cost more than they save."""

import random
from array import array
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.step_cost_model import Cost
from backends.models.linear import LinearChooser
from backends.models.loader import open_model
from backends.runners.native_library import Library
from backends.runners.registry import cpu_runner
from backends.spec_decode.draft_length import MAX_DRAFTS, best_count, draft_cost, may_guess
from backends.spec_decode.ngram import LONGEST, MAX_TENANTS, SEARCHED_TOKENS, AnswerHistory, NgramMatch, own
from backends.spec_decode.state import HOPED, AcceptanceRate
from backends.wire import Sampling, Submit
from tests.backends.conftest import MakeCheckpoint
from tests.backends.fakes import Ticks
from tests.backends.models.test_llama import CharacterDecoder


def test_ngram_proposes_the_continuation_of_the_longest_match() -> None:
    assert own(array("I", [1, 2, 3]), 4) is None
    assert own(array("I", [1, 2, 3, 4, 5, 1, 2, 3]), 4) == NgramMatch("own", 3, (4, 5, 1, 2))
    assert own(array("I", [1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3]), 2) == NgramMatch("own", 3, (9, 1))
    assert own(array("I", [7, 2, 3, 4, 1, 2, 3, 5, 9, 3, 6, 7, 2, 3]), 1) == NgramMatch("own", 3, (4,))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5))
def test_ngram_match_equals_a_naive_search(tokens: list[int], count: int) -> None:
    best = None
    for end in range(1, len(tokens)):  # what follows is at `end`
        length = 0
        while length < min(LONGEST, end) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length and (best is None or length >= best.length):
            best = NgramMatch("own", length, tuple(tokens[end : end + count]))
    assert own(array("I", tokens), count) == best


def test_answers_of_a_tenant_are_proposed_to_that_tenant_only() -> None:
    said = AnswerHistory()
    said.add("a", array("I", [9, 9, 1, 2, 3, 4]), 4)
    said.add("a", array("I", [9, 9, 5, 6]), 2)
    assert said.find("a", array("I", [8, 2]), 9) == NgramMatch("said", 1, (3, 4))
    assert said.find("a", array("I", [8, 1, 2, 3, 4]), 9) is None, "nothing of the next answer"
    assert said.find("b", array("I", [8, 1, 2]), 9) is None


def test_stored_answers_are_bounded() -> None:
    said, rng = AnswerHistory(), random.Random(0)
    for number in range(3 * MAX_TENANTS):
        said.add(str(number), array("I", [number, 7]), 2)
    assert said.find("0", array("I", [0]), 1) is None
    for _ in range(400):
        said.add("busy", array("I", rng.choices(range(50, 60), k=300)), 290)
    said.add("busy", array("I", range(1, 40)), 39)
    assert said.find("busy", array("I", [3, 4, 5]), 2) == NgramMatch("said", 3, (6, 7))
    assert all(len(text) == SEARCHED_TOKENS for text, _ in said._texts.values()) and len(said._texts) == MAX_TENANTS


def test_the_gate_follows_measured_costs() -> None:
    fixed = Cost(step=1e-2, group=0.0, row=1e-4, chunk=0.0, token=1e-4, mixed=0.0, kv_byte=0.0)
    linear = fixed._replace(step=1e-4, row=1e-3, token=1e-3)
    assert best_count(0.9, draft_cost(fixed, 1, 100, 0)) == MAX_DRAFTS
    assert best_count(0.9, draft_cost(linear, 1, 100, 0)) == 0
    assert best_count(0.5, draft_cost(fixed, 1, 100, 0)) > best_count(0.5, draft_cost(fixed, 16, 100, 0))
    assert best_count(0.9, draft_cost(Cost(0, 0, 0, 0, 0, 0, 0), 1, 100, 0)) == 0
    assert best_count(0.0, draft_cost(fixed, 1, 100, 0)) == 0


def test_few_drafts_do_not_repay_the_cost_of_a_wider_step() -> None:
    cost = Cost(step=1e-3, group=0.0, row=1e-4, chunk=0.0, token=1e-5, mixed=0.0, kv_byte=0.0)
    assert best_count(0.8, draft_cost(cost, 1, 100, 0)) == MAX_DRAFTS
    assert best_count(0.8, draft_cost(cost._replace(chunk=2e-2), 1, 100, 0)) == 0
    dear = draft_cost(cost._replace(chunk=1e-3), 1, 100, 0)
    assert best_count(0.3, dear) == 0 < best_count(0.9, dear)


def test_acceptance_is_learned_and_recovers() -> None:
    acceptance_rate = AcceptanceRate()
    for _ in range(30):
        acceptance_rate.learn(4, 0)
    assert acceptance_rate.value < 0.05
    for _ in range(500):
        acceptance_rate.forget()
    assert acceptance_rate.value == pytest.approx(HOPED, abs=0.01)
    for _ in range(30):
        acceptance_rate.learn(4, 4)
    assert acceptance_rate.value > 0.95


def test_sampling_that_depends_on_more_than_position_is_not_speculated() -> None:
    assert may_guess(Sampling(max_tokens=3, temperature=0.7, top_p=0.9, seed=4, stop=("x",)))


class Costly(Engine):
    """Steps whose cost does not depend on their tokens: every guess is worth it."""

    def step(self) -> None:
        self.step_cost._fit = [1.0, 0.0, 1e-6, 0.0, 1e-6, 0.0, 0.0, 0.0]
        super().step()


def said(directory: Path, library: Library | None, *, lookup: bool, temperature: float) -> tuple[dict[int, str], Engine, int]:
    model = open_model(directory, LinearChooser("float32", torch.float32, "cpu", library), dtype=torch.float32, device="cpu")
    of = RequestLimits(
        max_context=200,
        vocab_size=320,
        num_pages=200,
        page_size=4,
        max_sequences=3,
        prefill_tokens=64,
        eos_tokens=frozenset({0}),
        kv_bytes=1,
        fingerprint="f",
    )
    kv = model.kv(num_pages=of.num_pages, page_size=4, dtype=torch.float32, device="cpu")
    runner = cpu_runner(model.model, kv, dtype=torch.float32, library=library)
    engine = Costly(runner, CharacterDecoder(), of, clock_ns=Ticks(), rng=random.Random(0), lookup=lookup)
    rng, text, steps = random.Random(3), dict[int, str](), 0
    for request in range(4):
        # Whatever it says after three tokens, it has read that it follows them: pairs of every token.
        prompt = array("I", rng.choices(range(1, 12), k=60))
        sampling = Sampling(max_tokens=60, temperature=temperature, seed=request, ignore_eos=True)
        engine.submit("me", Submit(request=request, prompt=prompt.tobytes(), sampling=sampling))
    while engine.has_work:
        engine.step()
        engine.check()
        steps += 1
    for piece in engine.take_output().pieces["me"]:
        text[piece.request] = text.get(piece.request, "") + piece.text
    return text, engine, steps


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_speculation_gives_the_same_text_in_fewer_steps(
    library: Library | None, make_checkpoint: MakeCheckpoint, temperature: float
) -> None:
    """A small initializer makes a model that repeats itself, as agents do."""
    directory = make_checkpoint(initializer_range=0.05)
    plain, _, plain_steps = said(directory, library, lookup=False, temperature=temperature)
    guessed, engine, steps = said(directory, library, lookup=True, temperature=temperature)
    assert guessed == plain and all(len(text) for text in plain.values())
    assert engine.speculator is not None
    tally = engine.speculator.tallies["lookup"]
    assert tally.drafted >= tally.accepted > 0 or temperature
    assert steps < plain_steps or temperature
