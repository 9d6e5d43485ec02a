"""A sequence whose grammar has no next token ends with an error; the others give their text."""

from typing import Any

import pytest

from backends.wire import FinishReason
from tests.backends.engine.rig import Rig, said
from tests.backends.fakes import limits


class DeadEnd:
    """A grammar that refuses the token after `count`."""

    vocab_size = 97

    def __init__(self, count: int) -> None:
        self._left = count

    def limit(self, room: int) -> None: ...

    def settle(self, token: int) -> int:
        return token

    def accept(self, token: int) -> FinishReason | None:
        self._left -= 1
        return "error" if self._left < 0 else None

    def fill(self, masks: Any, row: int) -> None: ...


@pytest.mark.parametrize("count", [0, 3])
def test_a_token_that_a_grammar_refuses_ends_its_sequence_alone(count: int) -> None:
    rig = Rig(limits())
    rig.submit(1, [5, 6, 7])
    rig.submit_held(2, [5, 6, 8], DeadEnd(count))
    rig.run()
    assert rig.text[1] == said([5, 6, 7], 8) and rig.finished[1].reason in ("stop", "length")
    ended = rig.finished[2]
    assert (ended.reason, ended.error_code, ended.error_param) == ("error", "bad_grammar", "response_format")
    assert ended.num_output_tokens == count + 1 and rig.text.get(2, "") == said([5, 6, 8], count)
