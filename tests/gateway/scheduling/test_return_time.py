import random

from gateway.scheduling.return_time import EDGES, ReturnClass, ReturnTimeModel, pace

TOOL, END = ReturnClass("tool_calls", "bash"), ReturnClass("stop")


def test_tool_call_without_observations_is_expected_back_soon() -> None:
    times = ReturnTimeModel()
    assert times.chance(TOOL, 0.0, 9.0) > 0.4
    assert times.chance(TOOL, 0.0, 60.0) > 0.7
    assert times.chance(TOOL, 300.0, 9.0) < 0.2


def test_return_times_of_different_classes_are_learned_apart() -> None:
    times = ReturnTimeModel()
    for _ in range(100):
        times.observe(TOOL, 5.0)
        times.observe(END, 200.0)
    assert times.chance(TOOL, 0.0, 30.0) > 0.85
    assert times.chance(END, 0.0, 30.0) < 0.25


def test_chain_that_paused_longer_than_its_class_ever_did_rarely_returns() -> None:
    times = ReturnTimeModel()
    for _ in range(500):
        times.observe(TOOL, 5.0)
    assert times.chance(TOOL, 3.0, 30.0) > 0.9
    assert times.chance(TOOL, 100.0, 30.0) < 0.5
    assert times.chance(TOOL, EDGES[-1], 30.0) == 0.0


def test_runs_that_end_lower_the_chance() -> None:
    times = ReturnTimeModel()
    for _ in range(200):
        times.observe(END, None)
    assert times.chance(END, 0.0, 600.0) < 0.2


def test_pace_classes_are_five_lengths_of_pause() -> None:
    assert [pace(seconds) for seconds in (None, 1.0, 5.0, 20.0, 60.0, 300.0)] == [-1, 0, 1, 2, 3, 4]


def test_classes_are_bounded_and_further_ones_share_the_overall_distribution() -> None:
    times = ReturnTimeModel(max_kinds=2)
    for number in range(50):
        times.observe(ReturnClass("stop", f"tool-{number}"), 2.0)
        times.check()
    assert times.chance(ReturnClass("stop", "tool-49"), 0.0, 30.0) > 0.7


def test_random_walk_keeps_return_probabilities_valid_and_growing_with_time() -> None:
    rng, times = random.Random(4), ReturnTimeModel()
    for _ in range(2000):
        return_class = ReturnClass(rng.choice(("stop", "tool_calls")), rng.choice(("", "bash", "edit")), rng.randrange(-1, 5))
        times.observe(return_class, None if rng.random() < 0.1 else rng.expovariate(0.05))
        idle = rng.expovariate(0.02)
        chances = [times.chance(return_class, idle, within) for within in (0.0, 1.0, 10.0, 100.0, 1e4)]
        assert chances == sorted(chances)
        assert chances[0] == 0.0
        assert chances[-1] <= 1.0
    times.check()
