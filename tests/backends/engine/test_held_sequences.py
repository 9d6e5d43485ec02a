"""A sequence whose matcher still searches stays where it is; every other sequence gains a token in every step."""

from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from backends.engine.work import HELD, Sampled, Work
from backends.wire import Grammar, Sampling, Submit
from tests.backends.engine.rig import Rig, said
from tests.backends.fakes import limits


class SlowMatcher:
    """Decides about each token after `steps` further steps."""

    vocab_size = 97

    def __init__(self, steps: int) -> None:
        self._steps = self._left = steps

    def limit(self, room: int) -> None: ...

    def settle(self, token: int) -> int | None:
        self._left -= 1
        if self._left >= 0:
            return None
        self._left = self._steps
        return token

    def accept(self, token: int) -> None: ...

    def fill(self, masks: Any, row: int) -> None: ...


def settle(rig: Rig) -> None:
    """Let the fake runner ask the matchers, as a sampler does."""
    run = rig.runner.run

    def settled(work: Sequence[Work]) -> list[list[Sampled]]:
        return [[_settled(one, token) for token in sampled] for one, sampled in zip(work, run(work), strict=True)]

    rig.runner.run = settled  # type: ignore[method-assign]


def _settled(work: Work, sampled: Sampled) -> Sampled:
    matcher = work.sequence.matcher
    return sampled if matcher is None or matcher.settle(sampled.token) is not None else Sampled(HELD)


@pytest.mark.parametrize("prompt", [[5, 6, 8], [*range(1, 40)]])
def test_a_held_sequence_gives_its_text_and_delays_no_other(prompt: list[int]) -> None:
    rig = Rig(limits())
    settle(rig)
    rig.submit(1, [5, 6, 7])
    sampling = Sampling(max_tokens=4, grammar=Grammar(kind="json", param="p"))
    held = Submit(request=2, prompt=array("I", prompt).tobytes(), sampling=sampling)
    rig.engine.submit("me", held, SlowMatcher(5))
    gained = []
    while 1 not in rig.finished:
        before = rig.counted.get(1, 0)
        rig.step()
        gained.append(rig.counted.get(1, 0) - before)
    assert set(gained) == {1}
    rig.run()
    assert rig.text[2] == said(prompt, 4) and rig.finished[2].num_output_tokens == 4
    assert rig.finished[2].num_steps >= 4 * 6
