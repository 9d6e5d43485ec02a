from gateway.scheduling.fairness import REMEMBERED_S, TenantShares, is_kept


def test_alone_a_tenant_may_have_every_seat() -> None:
    seats = TenantShares(lambda tenant: 1.0)
    seats.record_arrival("oak", 0.0)
    assert not seats.is_at_share("oak", {"oak": 16}, 16, 0.0)


def test_beside_another_it_has_its_share_at_half_and_the_other_has_not() -> None:
    seats = TenantShares(lambda tenant: 1.0)
    seats.record_arrival("oak", 0.0)
    seats.record_arrival("ash", 1.0)
    assert not seats.is_at_share("oak", {"oak": 7}, 16, 2.0)
    assert seats.is_at_share("oak", {"oak": 8}, 16, 2.0)
    assert not seats.is_at_share("ash", {"oak": 14}, 16, 2.0)


def test_shares_go_by_weight() -> None:
    seats = TenantShares({"oak": 3.0, "ash": 1.0}.__getitem__)
    seats.record_arrival("oak", 0.0)
    seats.record_arrival("ash", 0.0)
    assert not seats.is_at_share("oak", {"oak": 11}, 16, 0.0)
    assert seats.is_at_share("oak", {"oak": 12}, 16, 0.0)


def test_who_has_not_come_for_a_while_is_left_nothing() -> None:
    seats = TenantShares(lambda tenant: 1.0)
    seats.record_arrival("ash", 0.0)
    assert seats.is_at_share("oak", {"oak": 8}, 16, REMEMBERED_S)
    assert not seats.is_at_share("oak", {"oak": 8}, 16, REMEMBERED_S + 1)


def test_an_eighth_is_kept_and_of_few_seats_none() -> None:
    assert [free for free in range(17) if is_kept(free, 16)] == [0, 1, 2]
    assert not is_kept(1, 4)


def test_levels_tell_how_much_of_its_share_a_tenant_has() -> None:
    seats = TenantShares(lambda tenant: 1.0)
    seats.record_arrival("oak", 0.0)
    assert seats.level("oak", {"oak": 16}, 16, 0.0) == 0, "alone"
    seats.record_arrival("ash", 0.0)
    assert [seats.level("oak", {"oak": taken}, 16, 0.0) for taken in (0, 1, 2, 4, 7, 8, 16)] == [0, 0, 1, 3, 6, 7, 7]
