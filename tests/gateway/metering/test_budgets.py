import contextlib
import random

import pytest

from gateway.errors import OverBudget
from gateway.metering.budgets import NOTHING, Amount, Budgets, Payers, Reservation
from gateway.policy.schema import Budget

ALICE = Payers("alice", "key-1", "run-1")
DAY_S = 86_400.0


def test_reserved_amount_cannot_be_reserved_again_and_the_unused_is_released() -> None:
    budgets = Budgets({"day": Budget(tokens=100)})
    (reservation,) = budgets.reserve(["day"], ALICE, [Amount(tokens=60)], 0.0)
    with pytest.raises(OverBudget, match="40 tokens of 100 tokens left, while 60 tokens are reserved") as told:
        budgets.reserve(["day"], ALICE, [Amount(tokens=60)], 0.0)
    assert told.value.retry_after_s == 1.0
    budgets.settle(reservation, Amount(tokens=30))
    budgets.reserve(["day"], ALICE, [Amount(tokens=70)], 0.0)
    with pytest.raises(OverBudget, match="0 tokens of 100 tokens left"):
        budgets.reserve(["day"], ALICE, [Amount(tokens=1)], 0.0)


def test_budget_window_resets_at_the_stated_time() -> None:
    budgets = Budgets({"day": Budget(usd=1.0, window_s=DAY_S)})
    (reservation,) = budgets.reserve(["day"], ALICE, [Amount(usd=1.0)], 10.0)
    budgets.settle(reservation, Amount(usd=1.0))
    with pytest.raises(OverBudget, match="resets at 1970-01-02T00:00:00Z, in 86,380 s") as told:
        budgets.reserve(["day"], ALICE, [Amount(usd=0.5)], 20.0)
    assert told.value.retry_after_s == DAY_S - 20.0
    budgets.reserve(["day"], ALICE, [Amount(usd=0.5)], DAY_S)


def test_request_of_the_old_window_is_charged_there() -> None:
    budgets = Budgets({"day": Budget(turns=1, window_s=DAY_S)})
    (old,) = budgets.reserve(["day"], ALICE, [Amount(turns=1)], DAY_S - 1)
    budgets.reserve(["day"], ALICE, [Amount(turns=1)], DAY_S + 1)
    budgets.settle(old, Amount(turns=1))
    assert budgets.spent("day", ALICE, DAY_S + 2) == NOTHING
    budgets.check()


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("tenant", Payers("alice", "key-2", "run-2"), Payers("bob", "key-1", "run-1")),
        ("key", Payers("alice", "key-1", "run-2"), Payers("alice", "key-2", "run-1")),
        ("run", Payers("alice", "key-2", "run-1"), Payers("bob", "key-1", "run-1")),
    ],
)
def test_each_payer_has_an_account(per: str, same: Payers, other: Payers) -> None:
    budgets = Budgets({"b": Budget(per=per, turns=1)})  # type: ignore[arg-type]
    budgets.reserve(["b"], ALICE, [Amount(turns=1)], 0.0)
    with pytest.raises(OverBudget, match=f'budget "b" of this {per}'):
        budgets.reserve(["b"], same, [Amount(turns=1)], 0.0)
    budgets.reserve(["b"], other, [Amount(turns=1)], 0.0)


def test_all_budgets_reserve_or_none_does() -> None:
    budgets = Budgets({"wide": Budget(turns=5), "narrow": Budget(per="run", turns=1)})
    with pytest.raises(OverBudget, match='"narrow"'):
        budgets.reserve(["wide", "narrow"], ALICE, [Amount(turns=1), Amount(turns=1)], 0.0)
    assert len(budgets.reserve(["wide"], ALICE, [Amount(turns=1)] * 5, 0.0)) == 5


def test_changed_budget_keeps_the_spent_amount() -> None:
    budgets = Budgets({"b": Budget(turns=1)})
    budgets.spend("b", ALICE, Amount(turns=1), 0.0)
    budgets.limit({"b": Budget(turns=2)})
    budgets.reserve(["b"], ALICE, [Amount(turns=1)], 0.0)
    with pytest.raises(OverBudget, match="does not reset"):
        budgets.reserve(["b"], ALICE, [Amount(turns=1)], 0.0)


def test_accounts_are_bounded_and_those_in_use_stay() -> None:
    budgets = Budgets({"b": Budget(per="run", turns=9)}, max_accounts=3)
    (reservation,) = budgets.reserve(["b"], ALICE, [Amount(turns=1)], 0.0)
    for number in range(10):
        budgets.spend("b", Payers("alice", "", f"other-{number}"), Amount(turns=1), 0.0)
    budgets.settle(reservation, Amount(turns=1))
    assert budgets.spent("b", ALICE, 0.0) == Amount(turns=1)
    budgets.spend("b", Payers("alice", "", "last"), Amount(), 0.0)
    assert len(budgets) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_holds_and_ends_spends_more_than_there_is(seed: int) -> None:
    choose = random.Random(seed)
    budgets = Budgets({"t": Budget(tokens=500), "r": Budget(per="run", usd=1.0, turns=20)})
    open_: list[Reservation] = []
    spent, runs = 0, [ALICE._replace(run=f"run-{n}") for n in range(3)]
    for _ in range(2_000):
        if open_ and choose.random() < 0.5:
            reservation = open_.pop(choose.randrange(len(open_)))
            took = Amount(
                reservation.amount.usd * choose.random(), choose.randint(0, reservation.amount.tokens), choose.randint(0, 1)
            )
            budgets.settle(reservation, took)
            spent += took.tokens
        else:
            most = Amount(choose.random() / 4, choose.randint(1, 90), 1)
            with contextlib.suppress(OverBudget):
                open_ += budgets.reserve(["t", "r"], choose.choice(runs), [most], 0.0)
        budgets.check()
        assert spent + sum(reservation.amount.tokens for reservation in open_) <= 500
    for run in runs:
        assert budgets.spent("r", run, 0.0).usd <= 1.0 + 1e-9
        assert budgets.spent("r", run, 0.0).turns <= 20


def test_accounts_of_past_windows_are_forgotten_and_windowless_ones_kept() -> None:
    budgets = Budgets({"hourly": Budget(per="run", turns=9, window_s=3600.0), "ever": Budget(per="run", turns=9)})
    for number in range(50):
        for reservation in budgets.reserve(["hourly"], Payers("t", "", f"r{number}"), [Amount(turns=1)], 10.0):
            budgets.settle(reservation, Amount(turns=1))
    (open_,) = budgets.reserve(["hourly"], Payers("t", "", "open"), [Amount(turns=1)], 20.0)
    assert len(budgets) == 51
    for reservation in budgets.reserve(["ever"], Payers("t", "", "r"), [Amount(turns=1)], 3700.0):
        budgets.settle(reservation, Amount(turns=1))
    assert len(budgets) == 2, "what still holds something stays"
    budgets.settle(open_, Amount(turns=1))
    assert budgets.spent("ever", Payers("t", "", "r"), 1e9).turns == 1
