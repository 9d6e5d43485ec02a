"""Threads of a step: the faster way is found for each size, stays found beside outliers, and is left when it is so no more."""

from collections.abc import Callable

from backends.engine.thread_tuner import SELDOM, ThreadTuner

Time = Callable[[int, int], float]


def rounds(thread_tuner: ThreadTuner, count: int, time: Time, *, work: int, chunks: bool = False) -> int:
    """How many of so many steps ran on one thread."""
    alone = 0
    for _ in range(count):
        threads = thread_tuner.choose(work, chunks=chunks)
        alone += threads == 1
        thread_tuner.took(work, chunks=chunks, threads=threads, time=time(work, threads))
    return alone


def with_meetings(work: int, threads: int) -> float:
    return work / threads + (5_000 if threads > 1 else 0)


def test_short_steps_run_on_one_thread_and_long_ones_on_all() -> None:
    thread_tuner = ThreadTuner(4)
    assert rounds(thread_tuner, 1000, with_meetings, work=1_000) > 950
    assert rounds(thread_tuner, 1000, with_meetings, work=1_000_000) < 50
    assert rounds(thread_tuner, 1000, with_meetings, work=1_000, chunks=True) > 950


def test_delayed_step_does_not_change_the_choice() -> None:
    thread_tuner, number = ThreadTuner(2), 0

    def held_up(work: int, threads: int) -> float:
        nonlocal number
        number += 1
        return with_meetings(work, threads) * (50 if number % 10 == 0 else 1)

    rounds(thread_tuner, 100, held_up, work=1_000)
    assert rounds(thread_tuner, 1000, held_up, work=1_000) > 950


def test_slower_number_of_threads_is_dropped() -> None:
    thread_tuner = ThreadTuner(2)
    rounds(thread_tuner, 5000, with_meetings, work=1_000_000)
    rounds(thread_tuner, 8 * SELDOM, lambda work, threads: work * threads, work=1_000_000)
    assert rounds(thread_tuner, 1000, lambda work, threads: work * threads, work=1_000_000) > 950


def test_slower_number_of_threads_is_tried_less_and_less_often() -> None:
    thread_tuner = ThreadTuner(2)
    rounds(thread_tuner, 20_000, with_meetings, work=1_000)
    assert 5 <= 10_000 - rounds(thread_tuner, 10_000, with_meetings, work=1_000) <= 12


def test_single_thread_needs_no_choice() -> None:
    thread_tuner = ThreadTuner(1)
    assert rounds(thread_tuner, 10, with_meetings, work=1_000_000) == 10
