import random

import msgspec

from gateway.scheduling.request_queue import Band, Line, QueuedRequest, RequestQueue


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
    while (taken := queue.pop()) is not None:
        order.append(taken.request)
    return order


def test_lower_band_goes_first() -> None:
    queue = RequestQueue(10)
    for request, band in enumerate([Band.BATCH, Band.NEW_RUN, Band.AGENT_TURN, Band.INTERACTIVE]):
        queue.push(item(request, band=band))
    assert drained(queue) == [3, 1, 2, 0]  # a new run and a turn of another one are in one line
    queue.push(item(1, band=Band.AGENT_TURN))
    queue.push(item(2, band=Band.NEW_RUN, arrival=0.0))
    gone = queue.evict_for(item(3, admitted_run=True))
    assert gone is not None and gone.request == 2  # but when one has to go it is the new run


def test_batch_goes_first_for_a_worker_that_owes_it() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, band=Band.INTERACTIVE, worker="w"))
    queue.push(item(2, band=Band.BATCH, worker="w"))
    queue.push(item(3, band=Band.BATCH, worker="other"))
    order = [taken.request for owed in (["w"], ["w"], []) if (taken := queue.pop(owed=owed))]
    assert order == [2, 1, 3]


def test_order_within_a_tenant_and_band_spans_workers() -> None:
    queue = RequestQueue(10)
    for request, worker in enumerate("abab"):
        queue.push(item(request, worker=worker))
    queue.check()
    assert dict(queue.lengths()) == {Line(Band.AGENT_TURN, "t", worker): 2 for worker in "ab"}
    assert drained(queue) == [0, 1, 2, 3]


def test_request_that_is_reassigned_waits_in_the_line_of_its_new_worker() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, band=Band.BATCH, worker="a"))
    queue.refresh(1, uncached_tokens=100, resident=False, worker="b")
    queue.check()
    assert queue.has_batch("b") and not queue.has_batch("a")


def test_full_queue_evicts_from_the_tenant_with_most_requests_for_its_weight() -> None:
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


def test_resident_requests_go_by_attained_service_and_cold_ones_by_arrival() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, attained_s=6.0))  # stands back by three seconds, which is behind 3
    queue.push(item(2))
    queue.push(item(3))
    queue.push(item(4, resident=True, attained_s=900.0))
    queue.push(item(5, resident=True, attained_s=2.0))
    queue.push(item(6))
    assert drained(queue) == [5, 4, 2, 3, 1, 6]


def test_tenants_share_uncached_work_by_weight() -> None:
    queue = RequestQueue(1000, {"heavy": 3.0})
    for request in range(200):
        queue.push(item(request, tenant="heavy" if request % 2 else "light"))
    first = [queue.pop() for _ in range(80)]
    heavy = sum(one is not None and one.tenant == "heavy" for one in first)
    assert 58 <= heavy <= 62
    queue.check()


def test_absent_tenant_saves_up_nothing() -> None:
    queue = RequestQueue(1000)
    for request in range(50):
        queue.push(item(request, tenant="busy"))
    for _ in range(25):
        queue.pop()
    for request in range(100, 150):
        queue.push(item(request, tenant="late"))
    next_ten = [queue.pop() for _ in range(10)]
    assert sum(one is not None and one.tenant == "late" for one in next_ten) in (5, 6)


def test_pop_skips_requests_that_are_not_ready() -> None:
    queue = RequestQueue(10)
    queue.push(item(1))
    queue.push(item(2))
    taken = queue.pop(lambda one: one.request == 2)
    assert taken is not None
    assert taken.request == 2
    assert queue.pop(lambda one: False) is None
    assert len(queue) == 1


def test_push_refuses_when_full_and_replaces_the_same_request() -> None:
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


def test_expire_removes_late_requests_longest_waiting_first() -> None:
    queue = RequestQueue(10)
    for request, deadline in ((1, 30.0), (2, 10.0), (3, 20.0)):
        queue.push(item(request, deadline=deadline))
    assert [one.request for one in queue.expire(20.0)] == [2, 3]
    assert queue.cancel(1)
    assert not queue.cancel(1)
    assert (len(queue), queue.uncached_tokens) == (0, 0)


def test_random_walk_of_push_pop_and_expire_keeps_the_invariants() -> None:
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


def test_overdue_cold_request_goes_first_while_the_budget_lasts() -> None:
    queue = RequestQueue(1000, cold_after_s=600.0, cold_share=0.25)
    for request in range(100):
        queue.push(item(request, arrival=0.0, uncached_tokens=1000, attained_s=1e3))
    for request in range(100, 400):
        queue.push(item(request, arrival=700.0, uncached_tokens=10, resident=True))
    queue.pop(now=699.0, prefill_rate=0.0)
    taken = [queue.pop(now=700.0 + second, prefill_rate=1000.0) for second in range(200)]
    overdue = sum(one is not None and not one.resident for one in taken)
    assert 45 <= overdue <= 55


def test_cold_request_keeps_its_place_before_it_is_overdue() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, arrival=0.0))
    queue.push(item(2, arrival=500.0, resident=True))
    one = queue.pop(now=599.0, prefill_rate=1000.0)
    assert one is not None
    assert one.request == 2


def test_refresh_reorders_by_residency() -> None:
    queue = RequestQueue(10)
    queue.push(item(1, resident=True, uncached_tokens=10))
    queue.push(item(2))
    queue.refresh(1, uncached_tokens=900, resident=False)
    queue.refresh(2, uncached_tokens=5, resident=True)
    queue.refresh(77, uncached_tokens=5, resident=True)
    assert queue.uncached_tokens == 905
    queue.check()
    assert drained(queue) == [2, 1]


def test_random_walk_of_every_operation_keeps_the_invariants() -> None:
    rng, queue = random.Random(6), RequestQueue(30, cold_after_s=50.0)
    for step in range(3000):
        known = rng.choice(queue.requests() or (0,))
        match rng.randrange(5):
            case 0 | 1:
                queue.push(item(step, tenant=rng.choice("ab"), band=rng.choice(list(Band)), arrival=float(step)))
            case 2:
                queue.pop(lambda one: one.request % 2 == 0, now=float(step), prefill_rate=20.0)
            case 3:
                resident, worker = rng.random() < 0.5, rng.choice("vw")
                queue.refresh(known, uncached_tokens=rng.randrange(500), resident=resident, worker=worker)
            case _:
                queue.cancel(known)
        queue.check()


def test_closed_line_is_skipped() -> None:
    queue = RequestQueue(100)
    for request in range(50):
        queue.push(item(request, tenant="oak", band=Band.AGENT_TURN if request % 2 else Band.NEW_RUN))
    queue.push(item(50, tenant="pine", band=Band.AGENT_TURN))
    seen: list[int] = []

    def ready(one: QueuedRequest) -> bool:
        seen.append(one.request)
        return one.tenant == "pine"

    taken = queue.pop(ready, closed=lambda line: line.tenant == "oak" and len(seen) >= 3)
    assert taken is not None and taken.request == 50 and len(seen) == 4
