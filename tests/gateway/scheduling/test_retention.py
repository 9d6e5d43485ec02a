import random

from gateway.scheduling.retention import LEAST, WAITS_COLD, WANTED, WITHIN_S, Retention, horizon_s


def test_score_falls_while_a_chain_pauses() -> None:
    retention = Retention()
    retention.turn_finished("a", 0.0, finish="tool_calls", tool="bash")
    scores = [retention.score("a", at) for at in (10.0, 40.0, 160.0, 640.0)]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < 0.25 < 0.5 < scores[0]


def test_waiting_chain_keeps_its_pages_only_if_it_starts_soon() -> None:
    retention = Retention()
    retention.turn_finished("a", 0.0, finish="tool_calls")
    retention.turn_arrived("a", 5.0)
    assert retention.score("a", 6.0, waits=True) == 1.0
    assert retention.score("a", 6.0, waits=True, resident=False) == WAITS_COLD


def test_requested_retention_raises_an_idle_chain_but_not_above_a_likely_one() -> None:
    retention = Retention()
    retention.turn_finished("marked", 0.0, finish="stop", keep_s=300.0)
    retention.turn_finished("hour", 0.0, finish="stop", keep_s=3600.0)
    retention.turn_finished("plain", 0.0, finish="stop")
    assert retention.score("marked", 1.0) == retention.score("plain", 1.0) > 0.3
    for number in range(400):  # nobody is seen to return after a minute
        for keep_s in (0.0, 300.0, 3600.0):
            retention.turn_finished(f"{number}", 0.0, finish="stop", keep_s=keep_s)
            retention.ended(f"{number}")
    assert retention.score("plain", 250.0) < WANTED == retention.score("marked", 250.0)
    assert retention.score("marked", 301.0) < WANTED == retention.score("hour", 301.0)
    assert LEAST < WANTED < WAITS_COLD


def test_return_times_of_marked_prompts_do_not_affect_unmarked_ones() -> None:
    retention = Retention()
    for number in range(300):
        retention.turn_finished(f"m{number}", 0.0, finish="stop", keep_s=300.0)
        retention.turn_arrived(f"m{number}", 5.0)
        retention.turn_finished(f"p{number}", 0.0, finish="stop")
        retention.ended(f"p{number}")
    retention.turn_finished("marked", 0.0, finish="stop", keep_s=300.0)
    retention.turn_finished("plain", 0.0, finish="stop")
    assert retention.score("marked", 0.0) > 0.8 > 0.2 > retention.score("plain", 0.0)


def test_new_chain_is_kept() -> None:
    assert Retention().score("new", 0.0) == 1.0


def test_chain_that_paused_long_is_released_sooner_next_time() -> None:
    retention = Retention()
    for number in range(60):
        name, length = f"chain-{number}", 3.0 if number % 2 else 200.0
        for turn in range(5):
            retention.turn_finished(name, turn * 300.0, finish="tool_calls")
            retention.turn_arrived(name, turn * 300.0 + length)
        retention.turn_finished(name, 1500.0, finish="tool_calls")
    assert retention.score("chain-1", 1500.0) > 0.8
    assert retention.score("chain-2", 1500.0) < 0.5


def test_ended_chain_is_forgotten_and_counts_as_never_returned() -> None:
    retention = Retention()
    for number in range(100):
        retention.turn_finished(f"{number}", 0.0, finish="stop")
        retention.ended(f"{number}")
    assert len(retention) == 0
    retention.turn_finished("next", 0.0, finish="stop")
    assert retention.score("next", 0.0) < 0.4


def test_a_random_walk_stays_bounded_with_scores_that_never_release() -> None:
    rng, retention = random.Random(9), Retention(max_chains=20)
    for step in range(3000):
        chain, now = f"{rng.randrange(40)}", float(step)
        match rng.randrange(4):
            case 0:
                retention.turn_arrived(chain, now)
            case 1:
                retention.ended(chain)
            case _:
                retention.turn_finished(chain, now, finish=rng.choice(("stop", "tool_calls")), tool=rng.choice(("", "bash")))
        retention.check()
        assert 0 < retention.score(chain, now + rng.uniform(0, 1000)) <= 1
    assert 15 <= len(retention) <= 20


def test_horizon_is_half_the_time_to_refill_the_pool() -> None:
    assert horizon_s(10_000, 4_000.0) == 1.25
    assert horizon_s(10_000_000, 4_000.0) == WITHIN_S
    retention = Retention()
    retention.turn_finished("slow", 0.0, finish="stop")
    assert retention.score("slow", 1.0, within_s=1.25) < retention.score("slow", 1.0)
