"""Interrupted steps of an engine and the requests that pay for them."""

from tests.backends.engine.rig import Rig
from tests.backends.fakes import limits


def broken_off(priority: int) -> Rig:
    """Five rows of priority 1 run; one of `priority` comes while a step of theirs is under way."""
    rig = Rig(limits(num_pages=200, max_sequences=6, prefill_tokens=50))
    for request in range(5):
        rig.submit(request, [5 + request] * 9, priority=1, max_tokens=60, ignore_eos=True)
    for _ in range(40):  # which is how much may be lost
        rig.step()
    rig.runner.during = lambda: rig.engine.record_arrival(priority)
    rig.step()
    rig.runner.during = lambda: None
    rig.submit(9, [9] * 30, priority=priority, max_tokens=1, ignore_eos=True)
    return rig


def test_interrupted_step_is_charged_to_the_prompt_of_higher_priority() -> None:
    rig, other = broken_off(0), broken_off(1)
    assert (rig.runner.num_broken_off, other.runner.num_broken_off) == (1, 0)
    lost_ns = rig.engine.step_interrupt.lost_ns
    assert lost_ns > 0 == other.engine.step_interrupt.lost_ns
    rig.step()
    assert rig.finished[9].device_s >= lost_ns / 1e9 and rig.engine.step_interrupt.lost_ns == 0
    rig.run()
    other.run()
    assert rig.text == other.text
    assert rig.engine.busy_meter.attributed_ns == rig.engine.busy_meter.busy_ns


def test_interrupts_take_a_bounded_share_of_the_time() -> None:
    rig, plain = Rig(limits(num_pages=200)), Rig(limits(num_pages=200))
    rig.runner.during = lambda: rig.engine.record_arrival(0)
    for one in (rig, plain):
        one.submit(1, [5] * 9, priority=1, max_tokens=150, ignore_eos=True)
        one.run()
    assert 0 < rig.runner.num_broken_off < 0.1 * len(rig.runner.computed)
    assert rig.text == plain.text
