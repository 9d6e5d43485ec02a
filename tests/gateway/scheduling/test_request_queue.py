import random

import msgspec

from gateway.scheduling.request_queue import DEQUEUE_HALF_LIFE_S, Band, DequeueRate, QueuedRequest, RequestQueue


def item(request: int, **changes: object) -> QueuedRequest:
    plain = QueuedRequest(
        request=request,
        tenant="t",
        run=f"run-{request}",
        band=Band.NEW_RUN,
        arrival=float(request),
        deadline=1e9,
        uncached_tokens=100,
    )
    return msgspec.structs.replace(plain, **changes)


def drained(queue: RequestQueue) -> list[int]:
    order = []
    while (one := queue.pop()) is not None:
        order.append(one.request)
    return order


def test_bands_go_before_everything_else() -> None:
    queue = RequestQueue(10)
    for request, band in enumerate([Band.BATCH, Band.NEW_RUN, Band.AGENT_TURN, Band.INTERACTIVE]):
        queue.push(item(request, band=band))
    assert drained(queue) == [3, 1, 2, 0]  # a new run and a turn of another one are in one line
    queue.push(item(1, band=Band.AGENT_TURN))
    queue.push(item(2, band=Band.NEW_RUN, arrival=0.0))
    gone = queue.evict_for(item(3, admitted_run=True))
    assert gone is not None and gone.request == 2  # but when one has to go it is the new run


def test_what_is_due_goes_first_while_its_promise_can_be_kept() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, band=Band.INTERACTIVE))
    queue.push(item(2, band=Band.BATCH, due=50.0, slo_missed_at=100.0))
    queue.push(item(3, due=40.0, slo_missed_at=45.0))
    queue.push(item(4, due=49.0, slo_missed_at=90.0))
    order = [one.request for now in (10.0, 50.0, 50.0, 50.0) if (one := queue.pop(now=now))]
    assert order == [1, 4, 2, 3]


def test_a_tenant_with_much_that_is_due_does_not_go_before_one_with_little() -> None:
    queue = RequestQueue(1000)
    for request in range(100):
        queue.push(item(request, tenant="much", due=1.0, slo_missed_at=1e6))
    for request in range(100, 105):
        queue.push(item(request, tenant="little", due=2.0, slo_missed_at=1e6))
    first = [queue.pop(now=10.0) for _ in range(12)]
    assert sum(one is not None and one.tenant == "little" for one in first) == 5


def test_a_full_queue_takes_from_the_tenant_that_fills_it() -> None:
    queue = RequestQueue(10, {"heavy": 2.0})
    for request in range(10):
        queue.push(item(request, tenant="a" if request < 6 else "heavy", admitted_run=request == 5))
    assert queue.evict_for(item(20, tenant="a")) is None
    assert [tenant for tenant in ("a", "heavy", "b") if queue.is_full_for(tenant)] == ["a"]
    for request, victim in ((21, 4), (22, 3)):
        gone = queue.evict_for(item(request, tenant="b"))
        assert gone is not None and gone.request == victim  # the last of a's, but no turn of a run that was admitted
        assert queue.push(item(request, tenant="b"))
    queue.check()
    gone = queue.evict_for(item(23, tenant="b", admitted_run=True))
    assert gone is not None and gone.request == 22


def test_in_a_band_the_resident_that_were_served_least_then_the_cold_as_they_came() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, attained_s=6.0))  # stands back by three seconds, which is behind 3
    queue.push(item(2))
    queue.push(item(3))
    queue.push(item(4, resident=True, attained_s=900.0))
    queue.push(item(5, resident=True, attained_s=2.0))
    queue.push(item(6))
    assert drained(queue) == [5, 4, 2, 3, 1, 6]


def test_tenants_share_by_weight_in_uncached_work() -> None:
    queue = RequestQueue(1000, {"heavy": 3.0})
    for request in range(200):
        queue.push(item(request, tenant="heavy" if request % 2 else "light"))
    first = [queue.pop() for _ in range(80)]
    heavy = sum(one is not None and one.tenant == "heavy" for one in first)
    assert 58 <= heavy <= 62
    queue.check()


def test_a_tenant_that_was_away_has_saved_up_nothing() -> None:
    queue = RequestQueue(1000)
    for request in range(50):
        queue.push(item(request, tenant="busy"))
    for _ in range(25):
        queue.pop()
    for request in range(100, 150):
        queue.push(item(request, tenant="late"))
    next_ten = [queue.pop() for _ in range(10)]
    assert sum(one is not None and one.tenant == "late" for one in next_ten) in (5, 6)


def test_pop_passes_over_what_is_not_ready() -> None:
    queue = RequestQueue(10)
    queue.push(item(1))
    queue.push(item(2))
    taken = queue.pop(lambda one: one.request == 2)
    assert taken is not None
    assert taken.request == 2
    assert queue.pop(lambda one: False) is None
    assert len(queue) == 1


def test_it_is_bounded_and_a_retry_replaces_its_first() -> None:
    queue = RequestQueue(2)
    assert queue.push(item(1))
    assert queue.push(item(2))
    assert not queue.push(item(3))
    assert queue.push(item(2, arrival=99.0, uncached_tokens=7))
    assert queue.uncached_tokens == 107
    queue.check()
    taken = queue.pop(lambda one: one.request == 2)
    assert taken is not None
    assert (taken.arrival, taken.uncached_tokens) == (2.0, 7)


def test_the_late_are_taken_out_the_longest_waiting_first() -> None:
    queue = RequestQueue(10)
    for request, deadline in ((1, 30.0), (2, 10.0), (3, 20.0)):
        queue.push(item(request, deadline=deadline))
    assert [one.request for one in queue.expire(20.0)] == [2, 3]
    assert queue.cancel(1)
    assert not queue.cancel(1)
    assert (len(queue), queue.uncached_tokens) == (0, 0)


def test_a_random_walk_keeps_the_counts() -> None:
    rng, queue, inside = random.Random(5), RequestQueue(40), set[int]()
    for step in range(3000):
        match rng.randrange(4):
            case 0 | 1:
                one = item(
                    step,
                    tenant=rng.choice("abc"),
                    band=rng.choice(list(Band)),
                    uncached_tokens=rng.randrange(500),
                    deadline=step + rng.randrange(200),
                )
                if queue.push(one):
                    inside.add(step)
                else:
                    assert len(inside) == 40
            case 2:
                taken = queue.pop(lambda one: one.request % 3 != 0)
                if taken is not None:
                    inside.remove(taken.request)
            case _:
                inside -= {one.request for one in queue.expire(step)}
        queue.check()
        assert len(queue) == len(inside)
    assert inside


def test_a_cold_one_that_waited_too_long_goes_first_while_the_budget_lasts() -> None:
    queue = RequestQueue(1000, cold_after_s=600.0, cold_share=0.25)
    for request in range(100):
        queue.push(item(request, arrival=0.0, uncached_tokens=1000, attained_s=1e3))
    for request in range(100, 400):
        queue.push(item(request, arrival=700.0, uncached_tokens=10, resident=True))
    queue.pop(now=699.0, prefill_rate=0.0)
    taken = [queue.pop(now=700.0 + second, prefill_rate=1000.0) for second in range(200)]
    overdue = sum(one is not None and not one.resident for one in taken)
    assert 45 <= overdue <= 55


def test_before_that_time_nobody_jumps_the_order() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, arrival=0.0))
    queue.push(item(2, arrival=500.0, resident=True))
    one = queue.pop(now=599.0, prefill_rate=1000.0)
    assert one is not None
    assert one.request == 2


def test_the_order_follows_what_is_resident_now() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, resident=True, uncached_tokens=10))
    queue.push(item(2))
    queue.refresh(1, uncached_tokens=900, resident=False)
    queue.refresh(2, uncached_tokens=5, resident=True)
    queue.refresh(77, uncached_tokens=5, resident=True)
    assert queue.uncached_tokens == 905
    queue.check()
    assert drained(queue) == [2, 1]


def test_a_random_walk_with_every_operation_keeps_the_counts() -> None:
    rng, queue = random.Random(6), RequestQueue(30, cold_after_s=50.0)
    for step in range(3000):
        known = rng.choice(queue.requests() or (0,))
        match rng.randrange(5):
            case 0 | 1:
                queue.push(item(step, tenant=rng.choice("ab"), band=rng.choice(list(Band)), arrival=float(step)))
            case 2:
                queue.pop(lambda one: one.request % 2 == 0, now=float(step), prefill_rate=20.0)
            case 3:
                queue.refresh(known, uncached_tokens=rng.randrange(500), resident=rng.random() < 0.5)
            case _:
                queue.cancel(known)
        queue.check()


def test_of_a_line_that_is_closed_no_more_is_looked_at_and_the_next_one_is() -> None:
    queue = RequestQueue(100)
    for request in range(50):
        queue.push(item(request, tenant="oak", band=Band.AGENT_TURN if request % 2 else Band.NEW_RUN))
    queue.push(item(50, tenant="pine", band=Band.AGENT_TURN))
    seen: list[int] = []

    def ready(one: QueuedRequest) -> bool:
        seen.append(one.request)
        return one.tenant == "pine"

    found = queue.pop(ready, closed=lambda tenant, line: (tenant, line) == ("oak", Band.NEW_RUN.line) and len(seen) >= 3)
    assert found is not None and found.request == 50 and len(seen) == 4


def dequeued(every_s: float, count: int, rate: DequeueRate | None = None, start: float = 0.0) -> tuple[DequeueRate, float]:
    rate, now = rate or DequeueRate(), start
    rate.record_waiting(now)
    for _ in range(count):
        now += every_s
        rate.record_start(now, others=True)
    return rate, now


def test_wait_follows_the_recent_dequeue_rate() -> None:
    rate, now = dequeued(0.5, 40)
    assert 9.0 < rate.wait_s(20, now) < 11.0


def test_a_short_wait_weighs_little_and_a_long_one_without_a_start_much() -> None:
    assert DequeueRate().wait_s(100, 5.0) == 0.0
    rate, now = dequeued(0.01, 3)
    assert rate.wait_s(100, now) < 1.0
    rate, now = dequeued(0.01, 0)
    assert rate.wait_s(20, now + 6.0) > 40.0


def test_a_slow_dequeue_rate_is_learned() -> None:
    rate, now = dequeued(5.0, 60)
    assert 50.0 < rate.wait_s(20, now) < 100.0


def test_time_without_waiting_requests_does_not_count() -> None:
    rate, now = dequeued(0.1, 30)
    before = rate.wait_s(10, now)
    rate.record_start(now, others=False)
    later = rate.wait_s(10, now + 1000)
    rate.record_waiting(now + 1000)
    assert rate.wait_s(10, now + 1000) == later <= before


def test_an_old_rate_decays_and_a_stall_raises_the_wait() -> None:
    rate, now = dequeued(0.1, 200)
    assert 0.9 < rate.wait_s(10, now) < 1.1
    assert rate.wait_s(10, now + DEQUEUE_HALF_LIFE_S) > 1.9
    rate, now = dequeued(0.1, 200)
    rate, now = dequeued(1.0, 100, rate, now)
    assert 7.5 < rate.wait_s(10, now) < 11.0
