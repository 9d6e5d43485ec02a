from gateway.scheduling.dequeue_rate import HALF_LIFE_S, DequeueRate


def drained(every_s: float, count: int, drain: DequeueRate | None = None, start: float = 0.0) -> tuple[DequeueRate, float]:
    drain, now = drain or DequeueRate(), start
    drain.record_waiting(now)
    for _ in range(count):
        now += every_s
        drain.record_start(now, others=True)
    return drain, now


def test_who_waits_begins_as_fast_as_others_did() -> None:
    drain, now = drained(0.5, 40)
    assert 9.0 < drain.wait_s(20, now) < 11.0


def test_little_is_said_of_little_and_much_of_a_long_wait_in_vain() -> None:
    assert DequeueRate().wait_s(100, 5.0) == 0.0
    drain, now = drained(0.01, 3)
    assert drain.wait_s(100, now) < 1.0
    drain, now = drained(0.01, 0)
    assert drain.wait_s(20, now + 6.0) > 40.0


def test_what_begins_once_in_five_seconds_is_known_too() -> None:
    drain, now = drained(5.0, 60)
    assert 50.0 < drain.wait_s(20, now) < 100.0


def test_time_in_which_nobody_waits_does_not_count() -> None:
    drain, now = drained(0.1, 30)
    before = drain.wait_s(10, now)
    drain.record_start(now, others=False)
    later = drain.wait_s(10, now + 1000)
    drain.record_waiting(now + 1000)
    assert drain.wait_s(10, now + 1000) == later <= before


def test_a_rate_that_was_is_forgotten_and_a_halt_is_seen() -> None:
    drain, now = drained(0.1, 200)
    assert 0.9 < drain.wait_s(10, now) < 1.1
    assert drain.wait_s(10, now + HALF_LIFE_S) > 1.9
    drain, now = drained(0.1, 200)
    drain, now = drained(1.0, 100, drain, now)
    assert 7.5 < drain.wait_s(10, now) < 11.0
