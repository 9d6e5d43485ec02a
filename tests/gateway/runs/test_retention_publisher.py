import random

from gateway.runs.registry import Chain, Run
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.scheduling.retention import LEAST, Retention


class Worker:
    """What it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float]] = []

    def retain(self, worker: str, chain: str, score: float) -> None:
        self.told.append((worker, chain, score))

    def take(self) -> list[tuple[str, str, float]]:
        told, self.told = self.told, []
        return told


def chain(name: str, worker: str | None = "w") -> Chain:
    return Chain(name, "run", None, warm_worker=worker)


def test_scores_fall_during_a_pause_and_then_stop() -> None:
    worker = Worker()
    retention = RetentionPublisher(Retention(), worker.retain)
    retention.finished(chain("a"), 0.0, finish="tool_calls", tool="bash")
    for second in range(0, 2000, 5):
        retention.refresh(float(second))
        retention.check()
    scores = [score for _, _, score in worker.take()]
    assert 4 <= len(scores) <= 30
    assert scores == sorted(scores, reverse=True)
    assert len(retention) == 0


def test_next_turn_keeps_its_pages() -> None:
    worker = Worker()
    retention = RetentionPublisher(Retention(), worker.retain)
    retention.finished(chain("a"), 0.0, finish="stop", tool="")
    worker.take()
    retention.arrived(chain("a"), 30.0)
    assert worker.take() == [("w", "a", 1.0)]
    retention.refresh(500.0)
    assert worker.take() == []


def test_chain_without_a_worker_sends_no_scores() -> None:
    worker = Worker()
    retention = RetentionPublisher(Retention(), worker.retain)
    retention.arrived(chain("new", None), 0.0)
    retention.finished(chain("new", None), 1.0, finish="stop", tool="")
    assert worker.take() == []


def test_worker_that_a_chain_left_evicts_its_pages_first() -> None:
    worker = Worker()
    retention = RetentionPublisher(Retention(), worker.retain)
    retention.moved(chain("a", "old"), "old")
    assert worker.take() == []
    retention.moved(chain("a", "old"), "new")
    assert worker.take() == [("old", "a", LEAST)]


def test_a_run_that_ended_is_forgotten_with_its_chains() -> None:
    worker = Worker()
    retention = RetentionPublisher(Retention(), worker.retain)
    run = Run("run", "t", "history", 0.0, 0.0, chains={"a": chain("a")})
    retention.finished(run.chains["a"], 0.0, finish="stop", tool="")
    retention.ended(run)
    assert (len(retention), len(retention.retention)) == (0, 0)


def test_random_walk_keeps_scores_between_zero_and_one() -> None:
    rng, worker = random.Random(8), Worker()
    retention = RetentionPublisher(Retention(max_chains=50), worker.retain)
    chains = [chain(f"{number}", rng.choice((None, "v", "w"))) for number in range(80)]
    for step in range(3000):
        one, now = rng.choice(chains), step * 2.0
        match rng.randrange(4):
            case 0:
                retention.arrived(one, now)
            case 1:
                retention.refresh(now)
            case _:
                retention.finished(one, now, finish=rng.choice(("stop", "tool_calls")), tool=rng.choice(("", "bash")))
        retention.check()
    assert all(0 < score <= 1 for _, _, score in worker.told)
