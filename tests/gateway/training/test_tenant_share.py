from collections import Counter

import pytest

from gateway.request import Message
from gateway.training.outcome import Outcome
from gateway.training.outcome_reader import joined
from gateway.training.tenant_share import capped


def outcome(tenant: str, number: int, **outcomes: float) -> Outcome:
    messages = (Message(role="user", content=f"question {number}"),)
    return Outcome(messages=messages, outcomes=outcomes or {"small": 1.0, "large": 1.0}, tenant=tenant)


def rows(**sizes: int) -> list[Outcome]:
    return [outcome(tenant.strip("_"), number) for tenant, size in sizes.items() for number in range(size)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_no_tenant_has_more_than_its_share(share: float) -> None:
    kept = capped(rows(a=5_000, b=100, c=80, d=60, _=500), share)
    counts = Counter(row.tenant for row in kept)
    assert counts[""] == 500
    assert all(count <= share * len(kept) for tenant, count in counts.items() if tenant)


def test_too_few_tenants_for_the_share_have_equal_rows() -> None:
    assert Counter(row.tenant for row in capped(rows(a=1_000, b=20), 0.25)) == {"a": 20, "b": 20}


def test_one_tenant_alone_keeps_its_rows() -> None:
    assert capped(rows(a=30), 0.1) == rows(a=30)


def test_rows_that_stay_do_not_depend_on_their_order() -> None:
    all_rows = rows(a=300, b=10, c=10)
    kept = {row.question for row in capped(all_rows, 0.4) if row.tenant == "a"}
    assert kept == {row.question for row in capped(all_rows[::-1], 0.4) if row.tenant == "a"}


def test_labels_of_two_tenants_for_one_question_are_not_joined() -> None:
    both = [*joined([outcome("a", 1, small=0.0), outcome("b", 1, large=1.0), outcome("b", 1, small=1.0)])]
    assert [(row.tenant, row.outcomes) for row in both] == [("a", {"small": 0.0}), ("b", {"large": 1.0, "small": 1.0})]
