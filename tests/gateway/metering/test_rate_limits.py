import random

import pytest

from gateway.errors import RateLimited
from gateway.metering.rate_limits import LimitedParty, RateLimiter, RateLimitPass, _duration
from gateway.policy.schema import RateLimits


def limited(requests: int | None = None, tokens: int | None = None, at_once: int | None = None) -> LimitedParty:
    limits = RateLimits(requests_per_minute=requests, tokens_per_minute=tokens, concurrent_requests=at_once)
    return LimitedParty('tenant "acme"', limits)


def test_burst_of_a_minutes_worth_is_admitted_and_refills_evenly() -> None:
    rates, who = RateLimiter(), [limited(requests=60)]
    for _ in range(60):
        rates.leave(rates.enter(who, 0.0), 0.0)
    with pytest.raises(
        RateLimited, match='0 requests are left of the requests_per_minute of tenant "acme", which is 60'
    ) as told:
        rates.enter(who, 0.25)
    assert told.value.retry_after_s == pytest.approx(0.75)
    rates.enter(who, 1.0)
    with pytest.raises(RateLimited):
        rates.enter(who, 1.0)


def test_tokens_are_reserved_and_the_unused_are_released() -> None:
    rates, who = RateLimiter(), [limited(tokens=600)]
    first = rates.enter(who, 0.0)
    rates.reserve(first, who, [250, 250], 0.0)
    second = rates.enter(who, 0.0)
    with pytest.raises(RateLimited, match=r"100 tokens are left .* may take 150") as told:
        rates.reserve(second, who, [150], 0.0)
    assert told.value.retry_after_s == pytest.approx(5.0)
    rates.settle(first, 250, 10, 0.0)
    rates.reserve(second, who, [150], 0.0)
    rates.leave(second, 0.0)
    rates.settle(first, 250, 10, 0.0)
    assert dict(rates.headers(who, 0.0))[b"x-ratelimit-remaining-tokens"] == b"580"
    with pytest.raises(RateLimited, match="ask for fewer") as told:
        rates.reserve(rates.enter(who, 0.0), who, [601], 0.0)
    assert told.value.retry_after_s is None
    rates.check()


def test_an_answer_longer_than_expected_is_paid_back_by_waiting() -> None:
    rates, who = RateLimiter(), [limited(tokens=60)]
    one = rates.enter(who, 0.0)
    rates.reserve(one, who, [10], 0.0)
    rates.settle(one, 10, 90, 0.0)
    with pytest.raises(RateLimited) as told:
        rates.enter(who, 10.0)
    assert told.value.retry_after_s == pytest.approx(21.0)
    rates.enter(who, 31.0)


def test_concurrent_requests_are_limited() -> None:
    rates, who = RateLimiter(), [limited(at_once=2)]
    first, _ = rates.enter(who, 0.0), rates.enter(who, 0.0)
    with pytest.raises(RateLimited, match="2 requests in flight, and its concurrent_requests is 2"):
        rates.enter(who, 100.0)
    for _ in range(2):
        rates.leave(first, 100.0)
    rates.enter(who, 100.0)
    with pytest.raises(RateLimited):
        rates.enter(who, 100.0)


def test_key_and_tenant_both_count_or_neither_does() -> None:
    rates, tenant = RateLimiter(), limited(requests=2)
    keys = [LimitedParty(f'key "{n}"', RateLimits(requests_per_minute=n)) for n in (1, 9)]
    rates.enter([keys[0], tenant], 0.0)
    with pytest.raises(RateLimited, match='key "1"'):
        rates.enter([keys[0], tenant], 0.0)
    rates.enter([keys[1], tenant], 0.0)
    with pytest.raises(RateLimited, match='tenant "acme"'):
        rates.enter([keys[1], tenant], 0.0)
    said = dict(rates.headers([keys[1], tenant], 0.0))
    assert (said[b"x-ratelimit-limit-requests"], said[b"x-ratelimit-remaining-requests"]) == (b"2", b"0")
    assert said[b"x-ratelimit-reset-requests"] == b"1m0s"
    assert dict(rates.headers([keys[1]], 0.0))[b"x-ratelimit-remaining-requests"] == b"8"


def test_changed_limits_keep_the_rest_of_an_account() -> None:
    rates = RateLimiter()
    for _ in range(3):
        rates.enter([limited(requests=4)], 0.0)
    said = dict(rates.headers([limited(requests=120, tokens=50)], 15.0))
    assert said[b"x-ratelimit-remaining-requests"] == b"2"
    assert said[b"x-ratelimit-remaining-tokens"] == b"50"
    assert dict(rates.headers([limited(requests=1)], 15.0))[b"x-ratelimit-remaining-requests"] == b"1"


def test_accounts_are_bounded_and_those_at_work_stay() -> None:
    rates = RateLimiter(max_accounts=3)
    working = limited(at_once=1)
    rates.enter([working], 0.0)
    for number in range(10):
        one = LimitedParty(f"key {number}", RateLimits(requests_per_minute=1))
        rates.leave(rates.enter([one], 0.0), 0.0)
    with pytest.raises(RateLimited):
        rates.enter([working], 0.0)
    assert len(rates) <= 12


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.12, "120ms"), (1, "1s"), (7.5, "7.5s"), (60, "1m0s"), (61.25, "1m1.25s"), (-1, "0s")]
)
def test_reset_times_have_openais_format(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


@pytest.mark.parametrize("seed", range(4))
def test_no_order_of_requests_takes_more_than_the_limits(seed: int) -> None:
    choose = random.Random(seed)
    rates, who = RateLimiter(), [limited(requests=30, tokens=900, at_once=5)]
    open_: list[tuple[RateLimitPass, list[int]]] = []
    now, entered, taken = 0.0, 0, 0
    for _ in range(3_000):
        now += choose.random() * 0.2
        if open_ and choose.random() < 0.5:
            one, held = open_.pop(choose.randrange(len(open_)))
            for tokens in held:
                spent = choose.randint(0, tokens)
                rates.settle(one, tokens, spent, now)
                taken += spent
            if not held:
                rates.leave(one, now)
        else:
            try:
                one = rates.enter(who, now)
            except RateLimited as told:
                assert told.retry_after_s is not None
                continue
            entered += 1
            held = [choose.randint(1, 60) for _ in range(choose.randint(1, 3))]
            try:
                rates.reserve(one, who, held, now)
            except RateLimited:
                held = []
            open_.append((one, held))
        rates.check()
        assert len(open_) <= 5
        assert entered <= 30 + now * 30 / 60 + 1e-6
        assert taken <= 900 + now * 900 / 60 + 1e-6
    assert entered > 40 and taken > 900
