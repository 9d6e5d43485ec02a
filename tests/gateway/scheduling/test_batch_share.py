import pytest

from gateway.scheduling.batch_share import WINDOW, BatchShare


def saturated(share: BatchShare, count: int) -> int:
    """Start `count` requests while batch waits all the time: batch where it is owed, else others. Return those of batch."""
    num_batch = 0
    for _ in range(count):
        is_owed = share.is_owed
        num_batch += is_owed
        share.record_start(batch=is_owed, batch_waits=True)
    return num_batch


@pytest.mark.parametrize("part", [0.05, 0.1, 0.5, 0.8])
def test_waiting_batch_gets_its_share_of_the_starts_under_saturation(part: float) -> None:
    assert saturated(BatchShare(part), 1000) == pytest.approx(1000 * part, abs=3)


def test_batch_earns_nothing_while_none_waits() -> None:
    share = BatchShare(0.1)
    for _ in range(100):
        share.record_start(batch=False, batch_waits=False)
    assert not share.is_owed and share.pace == 1.0


def test_batch_that_cannot_start_saves_up_little_more_than_one_start() -> None:
    share = BatchShare(0.1)
    for _ in range(1000):
        share.record_start(batch=False, batch_waits=True)
    share.record_start(batch=True, batch_waits=True)
    assert not share.is_owed


def test_pace_falls_to_the_share_under_saturation_and_recovers_when_batch_is_alone() -> None:
    share = BatchShare(0.1)
    saturated(share, 10 * WINDOW)
    assert share.pace == pytest.approx(0.1, abs=0.02)
    for _ in range(5 * WINDOW):
        share.record_start(batch=True, batch_waits=True)
    assert share.pace > 0.98
