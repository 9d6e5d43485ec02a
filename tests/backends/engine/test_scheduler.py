"""The scheduler under an engine: admission, chunked prefill, priorities, preemption."""

from typing import Any

import pytest

from backends.engine.scheduler import MAX_STILL
from tests.backends.engine.rig import Rig, reference_without_end
from tests.backends.fakes import letter, limits


@pytest.mark.parametrize(
    ("prompt", "sampling", "code"),
    [
        ([1] * 200, {}, "too_long"),
        ([], {}, "bad_prompt"),
        ([1, 97], {}, "bad_prompt"),
        ([1], {"max_tokens": 0}, "bad_sampling"),
        ([1], {"temperature": -1.0}, "bad_sampling"),
        ([1], {"top_p": 0.0}, "bad_sampling"),
        ([1], {"top_k": -1}, "bad_sampling"),
    ],
)
def test_request_that_cannot_run_gets_one_finished(prompt: list[int], sampling: dict[str, Any], code: str) -> None:
    rig = Rig(limits())
    rig.submit(1, prompt, **sampling)
    assert (rig.finished[1].reason, rig.finished[1].error_code) == ("refused", code)
    assert not rig.engine.has_work


def test_prompt_over_the_pool_is_refused_and_one_that_just_fits_is_not() -> None:
    rig = Rig(limits(num_pages=5, page_size=4))
    rig.submit(1, [2] * 20)
    assert rig.finished[1].error_code == "too_long"
    rig.submit(2, [2] * 19, max_tokens=50)
    rig.run()
    assert rig.finished[2].reason == "length" and rig.finished[2].num_output_tokens == 1


def test_too_many_waiting_are_refused() -> None:
    rig = Rig(limits(max_sequences=2))
    for request in range(5):
        rig.submit(request, [1, 2, 3])
    assert [rig.finished[request].error_code for request in rig.finished] == ["too_many"] * 3


def test_decoding_continues_during_a_chunked_prefill() -> None:
    rig = Rig(limits(prefill_tokens=8, num_pages=100))
    rig.submit(1, [1, 2], max_tokens=30, ignore_eos=True)
    rig.step()
    rig.submit(2, [3] * 80, max_tokens=2)
    for expected in range(2, 10):
        rig.step()
        assert rig.counted[1] == expected
    assert max(rig.runner.computed) <= 8 + 1


def test_higher_priority_preempts_a_lower_one_that_resumes_later() -> None:
    rig = Rig(limits(max_sequences=1))
    rig.submit(1, [1] * 9, priority=5, max_tokens=20, ignore_eos=True)
    rig.step()
    rig.step()
    rig.submit(2, [2] * 9, priority=0, max_tokens=3, ignore_eos=True)
    rig.step()
    assert 2 in rig.counted and rig.engine.scheduler.num_preemptions == 1
    rig.run()
    assert list(rig.finished) == [2, 1]
    assert rig.text[1] == "".join(letter(t) for t in reference_without_end([1] * 9, 20))


def test_begun_long_prefill_does_not_delay_a_higher_priority() -> None:
    rig = Rig(limits(prefill_tokens=8, num_pages=100))
    rig.submit(1, [1] * 60, priority=1, max_tokens=2, ignore_eos=True)
    rig.step()
    rig.submit(2, [2] * 7, priority=0, max_tokens=3, ignore_eos=True)
    rig.submit(3, [3] * 7, priority=1, max_tokens=3, ignore_eos=True)
    rig.step()
    assert rig.counted == {2: 1}
    rig.run()
    assert rig.counted == {1: 2, 2: 3, 3: 3}


def test_decodes_pause_for_a_bounded_time_during_a_higher_priority_prefill() -> None:
    rig = Rig(limits(prefill_tokens=8, num_pages=100))
    rig.submit(1, [1, 2], priority=1, max_tokens=30, ignore_eos=True)
    rig.submit(2, [1, 3], priority=0, max_tokens=30, ignore_eos=True)
    rig.step()
    rig.submit(3, [3] * 80, priority=0, max_tokens=2)
    counts = []
    for _ in range(10):
        rig.step()
        counts.append(rig.counted[1])
    assert counts == [1] * MAX_STILL + [2] * (MAX_STILL + 1) + [3]
    assert rig.counted[2] == 11, "of the same priority nobody stands still"
    rig.run()
    assert rig.text[1] == "".join(letter(t) for t in reference_without_end([1, 2], 30))


def test_decodes_continue_while_a_higher_priority_prompt_has_no_room() -> None:
    rig = Rig(limits(num_pages=6, page_size=4, max_sequences=4))
    rig.submit(1, [1] * 4, priority=0, max_tokens=14, ignore_eos=True)
    rig.submit(2, [2] * 4, priority=1, max_tokens=4, ignore_eos=True)
    rig.step()
    rig.submit(3, [3] * 20, priority=0, max_tokens=1)
    rig.run()
    assert rig.counted == {1: 14, 2: 4, 3: 1}
