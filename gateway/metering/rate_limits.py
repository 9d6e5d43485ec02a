"""Rate limits of tenants and keys: requests and tokens a minute, and concurrent requests. Pure: the clock is passed in.

Each limit is a token bucket of one minute's worth, full at first. A request takes one from the request bucket on arrival. Once
its prompt is counted it reserves the most tokens that it may take. At its end, also by an abort, the tokens spent replace the
reservation, which may make the level negative.

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
"""Accounts kept: more tenants and keys than are active at once. The least recently used without open requests goes first."""
_MINUTE_S = 60.0
_SEAT_S = 1.0
"""Retry-After for concurrent requests, as it is unknown when one ends."""
_DUST = 1e-9
NO_LIMITS = RateLimits()


class LimitedParty(NamedTuple):
    """Tenant or key with limits. `whose` names it in messages, such as `tenant "acme"`."""

    whose: str
    limits: RateLimits


@dataclass(slots=True, eq=False)
class _Account:
    """Levels of one party's buckets. `requests` and `tokens` are what is left; without a limit they are meaningless."""

    limits: RateLimits
    at: float
    requests: float
    tokens: float
    num_open: int = 0

    def fill(self, limits: RateLimits, now: float) -> None:
        """Refill up to `now` and set the limits. A changed limit keeps the level; a new one starts full."""
        passed_s, self.at = max(0.0, now - self.at), max(now, self.at)
        previous, self.limits = self.limits, limits
        self.requests = _filled(self.requests, previous.requests_per_minute, limits.requests_per_minute, passed_s)
        self.tokens = _filled(self.tokens, previous.tokens_per_minute, limits.tokens_per_minute, passed_s)


def _filled(level: float, previous: int | None, limit: int | None, passed_s: float) -> float:
    if limit is None:
        return 0.0
    return float(limit) if previous is None else min(limit, level + previous * passed_s / _MINUTE_S)


@dataclass(slots=True, eq=False)
class RateLimitPass:
    """One admitted request until it is settled or left. `reserved` are the tokens of its calls that have not ended."""

    accounts: tuple[_Account, ...]
    num_calls: int = 0
    reserved: int = 0
    is_open: bool = True


class RateLimiter:
    """Accounts of tenants and keys with limits, created at first use."""

    def __init__(self, *, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._max_accounts = max_accounts
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def enter(self, limited: Sequence[LimitedParty], now: float) -> RateLimitPass:
        """Admit a request for all its parties, or raise RateLimited and count nothing. `now` in seconds, of any origin."""
        accounts = tuple(self._account(party, now) for party in limited)
        for (whose, limits), account in zip(limited, accounts, strict=True):
            if limits.concurrent_requests is not None and account.num_open >= limits.concurrent_requests:
                raise RateLimited(
                    f"{whose} has {account.num_open:,} requests in flight, and its concurrent_requests is "
                    f"{limits.concurrent_requests:,}: wait until one has ended",
                    retry_after_s=_SEAT_S,
                )
            _check(whose, "requests_per_minute", limits.requests_per_minute, account.requests, 1)
            _check(whose, "tokens_per_minute", limits.tokens_per_minute, account.tokens, 1)
        for account in accounts:
            account.num_open += 1
            account.requests -= 1
        return RateLimitPass(accounts)

    def reserve(self, admitted: RateLimitPass, limited: Sequence[LimitedParty], tokens: Sequence[int], now: float) -> None:
        """Reserve the upper bound of each call, or raise RateLimited and reserve nothing."""
        total = sum(tokens)
        for whose, limits in limited:
            _check(
                whose,
                "tokens_per_minute",
                limits.tokens_per_minute,
                self._account(LimitedParty(whose, limits), now).tokens,
                total,
            )
        for account in admitted.accounts:
            account.tokens -= total
        admitted.num_calls, admitted.reserved = len(tokens), total

    def settle(self, admitted: RateLimitPass, reserved: int, spent: int, now: float) -> None:
        """Replace an ended call's reserved tokens by those spent. The last call ends the request."""
        self._give_back(admitted, reserved - spent, now)
        admitted.reserved -= reserved
        admitted.num_calls -= 1
        if not admitted.num_calls:
            self.leave(admitted, now)

    def leave(self, admitted: RateLimitPass, now: float) -> None:
        """End a request, also one that never had calls. A second call does nothing."""
        if not admitted.is_open:
            return
        admitted.is_open = False
        self._give_back(admitted, admitted.reserved, now)
        for account in admitted.accounts:
            account.num_open -= 1

    def charge(self, admitted: RateLimitPass, requests: int) -> None:
        """Take more requests for one that cost as much as several. The level may become negative: later ones wait."""
        for account in admitted.accounts:
            account.requests -= requests

    def headers(self, limited: Sequence[LimitedParty], now: float) -> list[tuple[bytes, bytes]]:
        """Return OpenAI's rate limit headers of the party with least left: limit, remaining, and time until it is full."""
        headers: list[tuple[bytes, bytes]] = []
        for unit in ("requests", "tokens"):
            limits = [
                (limit, getattr(self._account(party, now), unit))
                for party in limited
                if (limit := getattr(party.limits, f"{unit}_per_minute")) is not None
            ]
            if not limits:
                continue
            limit, level = min(limits, key=lambda pair: pair[1])
            headers += [
                (f"x-ratelimit-limit-{unit}".encode(), b"%d" % limit),
                (f"x-ratelimit-remaining-{unit}".encode(), b"%d" % max(0, math.floor(level + _DUST))),
                (f"x-ratelimit-reset-{unit}".encode(), _duration((limit - level) * _MINUTE_S / limit).encode()),
            ]
        return headers

    def check(self) -> None:
        """Assert that no request is left twice and no level exceeds a minute's worth; for tests."""
        for account in self._accounts.values():
            assert account.num_open >= 0
            assert account.requests <= (account.limits.requests_per_minute or 0)
            assert account.tokens <= (account.limits.tokens_per_minute or 0)

    def _give_back(self, admitted: RateLimitPass, tokens: int, now: float) -> None:
        for account in admitted.accounts:
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
    """Format as `0s`, `120ms`, `7.5s` or `1m0s`, rounded up to a millisecond."""
    ms = math.ceil(max(0.0, seconds) * 1000 - 1e-6)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
