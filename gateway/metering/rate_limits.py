"""How fast tenants and keys may ask: requests and tokens a minute, and requests at the same time. Pure: the clock is passed in.

A minute's worth is a bucket that is full at first and fills evenly. A request takes one from that of requests when it comes,
and from that of tokens the most that it is expected to take once its prompt is counted; when it has ended, also by an abort,
what it took stands in place of that, if need be below zero.

level(now) = min(limit, level(then) + limit * (now - then) / 60)
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import RateLimited
from gateway.policy.schema import RateLimits

MAX_ACCOUNTS = 20_000
"""The least recently used with nothing under way is forgotten first: so many tenants and keys are not at work at once."""
_MINUTE_S = 60.0
_SEAT_S = 1.0
"""When another request ends is not known."""
_DUST = 1e-9
NO_LIMITS = RateLimits()


class LimitedParty(NamedTuple):
    """Whose requests are counted, such as `tenant "acme"`, and what they may be."""

    whose: str
    limits: RateLimits


@dataclass(slots=True, eq=False)
class _Account:
    """`requests` and `tokens` are what is left now; without a limit they mean nothing."""

    limits: RateLimits
    at: float
    requests: float
    tokens: float
    num_open: int = 0

    def fill(self, limits: RateLimits, now: float) -> None:
        """Another limit keeps what is left; one that is new begins full."""
        passed_s, self.at = max(0.0, now - self.at), max(now, self.at)
        before, self.limits = self.limits, limits
        self.requests = _filled(self.requests, before.requests_per_minute, limits.requests_per_minute, passed_s)
        self.tokens = _filled(self.tokens, before.tokens_per_minute, limits.tokens_per_minute, passed_s)


def _filled(level: float, before: int | None, limit: int | None, passed_s: float) -> float:
    if limit is None:
        return 0.0
    return float(limit) if before is None else min(limit, level + before * passed_s / _MINUTE_S)


@dataclass(slots=True, eq=False)
class RateLimitPass:
    """One request that was let in, until it is settled or left. `held` are tokens of its calls that have not ended."""

    accounts: tuple[_Account, ...]
    num_calls: int = 0
    reserved: int = 0
    is_open: bool = True


class RateLimiter:
    """One account for each tenant and key with limits, made when first used."""

    def __init__(self, *, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._max_accounts = max_accounts
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def enter(self, limited: Sequence[LimitedParty], now: float) -> RateLimitPass:
        """Counts a request of everybody it belongs to, or of nobody: raises RateLimited. `now` in seconds, of any origin."""
        accounts = tuple(self._account(one, now) for one in limited)
        for (whose, limits), account in zip(limited, accounts, strict=True):
            if limits.concurrent_requests is not None and account.num_open >= limits.concurrent_requests:
                raise RateLimited(
                    f"{whose} has {account.num_open:,} requests under way, and its concurrent_requests is "
                    f"{limits.concurrent_requests:,}: wait until one has ended",
                    retry_after_s=_SEAT_S,
                )
            _check(whose, "requests_per_minute", limits.requests_per_minute, account.requests, 1)
            _check(whose, "tokens_per_minute", limits.tokens_per_minute, account.tokens, 1)
        for account in accounts:
            account.num_open += 1
            account.requests -= 1
        return RateLimitPass(accounts)

    def reserve(self, one: RateLimitPass, limited: Sequence[LimitedParty], tokens: Sequence[int], now: float) -> None:
        """What each call of a request is expected to take at most, or nothing at all: raises RateLimited."""
        most = sum(tokens)
        for whose, limits in limited:
            _check(
                whose,
                "tokens_per_minute",
                limits.tokens_per_minute,
                self._account(LimitedParty(whose, limits), now).tokens,
                most,
            )
        for account in one.accounts:
            account.tokens -= most
        one.num_calls, one.reserved = len(tokens), most

    def settle(self, one: RateLimitPass, held: int, spent: int, now: float) -> None:
        """A call has ended: the tokens that it took stand for those that were held. The last one leaves."""
        self._give_back(one, held - spent, now)
        one.reserved -= held
        one.num_calls -= 1
        if not one.num_calls:
            self.leave(one, now)

    def leave(self, one: RateLimitPass, now: float) -> None:
        """The request has ended, or never got as far as having calls. A second time does nothing."""
        if not one.is_open:
            return
        one.is_open = False
        self._give_back(one, one.reserved, now)
        for account in one.accounts:
            account.num_open -= 1

    def headers(self, limited: Sequence[LimitedParty], now: float) -> list[tuple[bytes, bytes]]:
        """As OpenAI sends them, of whoever has least left: the limit, what is left of it, and when all of it will be."""
        found = []
        for unit in ("requests", "tokens"):
            limits = [
                (limit, getattr(self._account(one, now), unit))
                for one in limited
                if (limit := getattr(one.limits, f"{unit}_per_minute")) is not None
            ]
            if not limits:
                continue
            limit, level = min(limits, key=lambda pair: pair[1])
            found += [
                (f"x-ratelimit-limit-{unit}".encode(), b"%d" % limit),
                (f"x-ratelimit-remaining-{unit}".encode(), b"%d" % max(0, math.floor(level + _DUST))),
                (f"x-ratelimit-reset-{unit}".encode(), _duration((limit - level) * _MINUTE_S / limit).encode()),
            ]
        return found

    def check(self) -> None:
        """Nothing is let out twice, and nobody has more than a minute's worth."""
        for account in self._accounts.values():
            assert account.num_open >= 0
            assert account.requests <= (account.limits.requests_per_minute or 0)
            assert account.tokens <= (account.limits.tokens_per_minute or 0)

    def _give_back(self, one: RateLimitPass, tokens: int, now: float) -> None:
        for account in one.accounts:
            account.fill(account.limits, now)
            if account.limits.tokens_per_minute is not None:
                account.tokens = min(account.limits.tokens_per_minute, account.tokens + tokens)

    def _account(self, limited: LimitedParty, now: float) -> _Account:
        account = self._accounts.get(limited.whose)
        if account is None:
            account = self._accounts[limited.whose] = _Account(NO_LIMITS, now, 0.0, 0.0)
            self._forget()
        self._accounts.move_to_end(limited.whose)
        account.fill(limited.limits, now)
        return account

    def _forget(self) -> None:
        while len(self._accounts) > self._max_accounts:
            whose, account = next(iter(self._accounts.items()))
            if account.num_open:
                return
            del self._accounts[whose]


def _check(whose: str, name: str, limit: int | None, level: float, wanted: int) -> None:
    if limit is None or level + _DUST >= wanted:
        return
    unit = name.partition("_")[0]
    if wanted > limit:
        raise RateLimited(f"this request may take {wanted:,} {unit}, and the {name} of {whose} is {limit:,}: ask for fewer")
    wait_s = (wanted - level) * _MINUTE_S / limit
    raise RateLimited(
        f"{max(0, math.floor(level)):,} {unit} are left of the {name} of {whose}, which is {limit:,}, and this request "
        f"{'may take' if unit == 'tokens' else 'is'} {wanted:,}: try again in {wait_s:.3g} s",
        retry_after_s=wait_s,
    )


def _duration(seconds: float) -> str:
    """`0s`, `120ms`, `7.5s`, `1m0s`; rounded up to a millisecond."""
    ms = math.ceil(max(0.0, seconds) * 1000 - 1e-6)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
