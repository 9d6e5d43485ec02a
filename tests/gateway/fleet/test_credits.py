from hypothesis import given
from hypothesis import strategies as st

from backends.wire import Load
from gateway.fleet.credits import Credits


def load(sequences: int, *, running: int = 0, waiting: int = 0, tokens: int = 1000) -> Load:
    return Load(
        running=running,
        waiting=waiting,
        free_pages=0,
        cached_pages=0,
        num_pages=0,
        credit_sequences=sequences,
        credit_tokens=tokens,
        busy_s=0.0,
        idle_s=0.0,
        attributed_s=0.0,
        step_cost=(0.0, 0.0, 0.0, 0.0),
    )


def test_load_older_than_a_submit_does_not_free_its_seat() -> None:
    credits = Credits()
    credits.grant(load(1))
    credits.submit(1, 10)
    credits.grant(load(1))  # still says one seat: it has not seen the submit
    assert not credits.has_capacity(10)
    credits.grant(load(0, running=1))
    assert not credits.has_capacity(10)
    credits.finish(1)
    credits.grant(load(1))
    assert credits.has_capacity(10)


def test_an_idle_worker_takes_a_prompt_longer_than_its_credits_and_a_busy_one_does_not() -> None:
    credits = Credits()
    credits.grant(load(4, tokens=100))
    assert credits.has_capacity(5000)
    credits.submit(1, 5000)
    assert not credits.has_capacity(1)
    credits.grant(load(3, running=1, tokens=100))
    assert credits.has_capacity(100)
    assert not credits.has_capacity(101)


def test_lost_link_grants_no_credits() -> None:
    credits = Credits()
    credits.grant(load(4))
    credits.submit(1, 1)
    credits.forget()
    assert not credits.has_capacity(1)
    assert not credits.live


@given(st.lists(st.sampled_from(["submit", "arrive", "finish", "load"]), max_size=80), st.integers(1, 5))
def test_crossing_frames_never_exceed_the_seats_of_a_worker(moves: list[str], seats: int) -> None:
    credits = Credits()
    credits.grant(load(seats))
    on_the_way: list[int] = []
    running: list[int] = []
    for number, move in enumerate(moves):
        match move:
            case "submit" if credits.has_capacity(1):
                credits.submit(number, 1)
                on_the_way.append(number)
            case "arrive" if on_the_way:
                running.append(on_the_way.pop(0))
            case "finish" if running:
                credits.finish(running.pop(0))
            case "load":
                credits.grant(load(seats - len(running), running=len(running)))
        assert len(running) + len(on_the_way) <= seats


def test_seats_are_counted_by_tenant() -> None:
    credits = Credits()
    credits.submit(1, 10, "ash")
    credits.submit(2, 10, "oak")
    credits.submit(3, 10, "oak")
    assert credits.taken == {"ash": 1, "oak": 2}
    credits.finish(1)
    credits.finish(1)
    assert credits.taken == {"oak": 2}
    credits.forget()
    credits.finish(2)
    assert not credits.taken


def test_busy_worker_takes_a_prompt_beyond_its_credits_that_it_prefills_first() -> None:
    credits = Credits()
    credits.grant(load(4, tokens=0))
    credits.submit(1, 500, priority=3)
    credits.grant(load(3, running=1, tokens=0))
    assert credits.has_capacity(5000, priority=2)
    assert not credits.has_capacity(1, priority=3)
    credits.prefilled(1)
    assert not credits.has_capacity(1, priority=2), "nothing is to be read, so that nothing is gone before"
    credits.submit(2, 500, priority=2)
    credits.finish(2)
    assert not credits.prefilling
