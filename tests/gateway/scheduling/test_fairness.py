from gateway.scheduling.fairness import TenantShares, is_reserved


def shares(*arrived: str, weights: dict[str, float] | None = None) -> TenantShares:
    found = TenantShares(lambda tenant: (weights or {}).get(tenant, 1.0), idle_s=60.0)
    for tenant in arrived:
        found.record_arrival(tenant, 0.0)
    return found


def test_only_active_tenant_may_use_every_seat() -> None:
    assert not shares("oak").is_at_share("oak", {"oak": 16}, 16, 0.0)


def test_one_of_two_tenants_is_at_its_share_with_half_of_the_seats() -> None:
    both = shares("oak", "ash")
    assert not both.is_at_share("oak", {"oak": 7}, 16, 2.0)
    assert both.is_at_share("oak", {"oak": 8}, 16, 2.0)
    assert not both.is_at_share("ash", {"oak": 14}, 16, 2.0)


def test_share_follows_weight() -> None:
    both = shares("oak", "ash", weights={"oak": 3.0})
    assert not both.is_at_share("oak", {"oak": 11}, 16, 0.0)
    assert both.is_at_share("oak", {"oak": 12}, 16, 0.0)


def test_idle_tenant_has_no_share() -> None:
    other = shares("ash")
    assert other.is_at_share("oak", {"oak": 8}, 16, 60.0)
    assert not other.is_at_share("oak", {"oak": 8}, 16, 61.0)


def test_batch_is_alone_when_nothing_else_arrived_lately() -> None:
    found = shares()
    found.record_arrival("oak", 0.0, batch=True)
    assert found.is_batch_alone(0.0)
    found.record_arrival("oak", 1.0)
    assert not found.is_batch_alone(61.0)
    assert found.is_batch_alone(61.1)


def test_last_eighth_of_the_seats_is_reserved_and_none_of_few_seats() -> None:
    assert [free for free in range(17) if is_reserved(free, 16)] == [0, 1, 2]
    assert not is_reserved(1, 4)
