"""Budgets of tenants, keys and runs. Pure: the clock is passed in. Check and reservation are one call, so that no two requests
spend the same money.

spent + reserved + the request's upper bound <= limit. `reserved` is the upper bound of requests in flight. Windows of
`window_s` seconds begin at multiples of it in Unix time. Spending counts in the window in which its request arrived.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.errors import OverBudget
from gateway.policy.schema import Budget
from gateway.routing.decide import AUTO
from gateway.routing.decision import RoutingRequest, WorkerView

MAX_ACCOUNTS = 200_000
"""Accounts kept, as the number of runs is unbounded. Least recently used accounts without reservations and those of past
windows are dropped first."""
_DUST = 1e-9
"""Tolerance as a share of a limit, for rounding in sums of floats."""
_SOON_S = 1.0
USD_MARGIN = 2.0
"""Over the predicted price: a step with few sequences costs each of them more than the average that was learned."""


class Amount(NamedTuple):
    usd: float = 0.0
    tokens: int = 0
    turns: int = 0

    def plus(self, other: "Amount", sign: int = 1) -> "Amount":
        return Amount(self.usd + sign * other.usd, self.tokens + sign * other.tokens, self.turns + sign * other.turns)


NOTHING = Amount()


class Payers(NamedTuple):
    """Tenant, key and run that a request is charged to. `key` is the id of a key, never the key; "" if none is needed."""

    tenant: str
    key: str
    run: str


@dataclass(slots=True)
class _Account:
    window: int
    spent: Amount = NOTHING
    reserved: Amount = NOTHING
    num_reservations: int = 0


class Reservation(NamedTuple):
    """Upper bound of one request, reserved in each account that pays for it. It must be settled exactly once."""

    accounts: tuple[_Account, ...]
    amount: Amount


class Budgets:
    """Accounts by budget and payer, created at first use."""

    def __init__(self, budgets: Mapping[str, Budget], *, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._budgets = budgets
        self._max_accounts = max_accounts
        self._accounts: OrderedDict[tuple[str, Payers], _Account] = OrderedDict()
        self.num_reservations = 0
        """Reservations of requests in flight."""
        self.settled = NOTHING
        """Sum of all ended requests since the start, each counted once whatever the number of its budgets."""

    def __len__(self) -> int:
        return len(self._accounts)

    def limit(self, budgets: Mapping[str, Budget]) -> None:
        """Replace the limits. Spending so far is kept; a new budget counts from now."""
        self._budgets = budgets

    def reserve(self, names: Sequence[str], payers: Payers, wanted: Sequence[Amount], now: float) -> list[Reservation]:
        """Reserve each amount in every named budget, or raise OverBudget and reserve nothing. `now` is Unix time."""
        total = NOTHING
        for amount in wanted:
            total = total.plus(amount)
        accounts = []
        for name in dict.fromkeys(names):
            if name not in self._budgets:  # a budget of a policy that is no longer in force
                continue
            account = self._account(name, payers, now)
            _check(name, self._budgets[name], payers, account, total, now)
            accounts.append(account)
        for account in accounts:
            account.reserved = account.reserved.plus(total)
            account.num_reservations += len(wanted)
        self.num_reservations += len(wanted)
        return [Reservation(tuple(accounts), amount) for amount in wanted]

    def settle(self, reservation: Reservation, spent: Amount) -> None:
        """Replace a reservation by what the request actually spent."""
        self.num_reservations -= 1
        self.settled = self.settled.plus(spent)
        for account in reservation.accounts:
            account.num_reservations -= 1
            account.reserved = account.reserved.plus(reservation.amount, -1) if account.num_reservations else NOTHING
            account.spent = account.spent.plus(spent)

    def spend(self, name: str, payers: Payers, spent: Amount, now: float) -> None:
        """Count spending without a reservation, from before a restart."""
        account = self._account(name, payers, now)
        account.spent = account.spent.plus(spent)

    def spent(self, name: str, payers: Payers, now: float) -> Amount:
        return self._account(name, payers, now).spent

    def check(self) -> None:
        """Assert that reservations are neither lost nor settled twice; for tests."""
        assert self.num_reservations >= 0
        for account in self._accounts.values():
            assert account.num_reservations >= 0
            assert account.num_reservations or account.reserved == NOTHING

    def _account(self, name: str, payers: Payers, now: float) -> _Account:
        budget = self._budgets[name]
        place = (name, _payer(budget, payers))
        window = _window(budget, now)
        account = self._accounts.get(place)
        if account is None or account.window < window:
            account = self._accounts[place] = _Account(window)
        self._accounts.move_to_end(place)
        self._forget(now)
        return account

    def _forget(self, now: float) -> None:
        """Drop least recently used accounts whose window is over, or that exceed the bound. Stop at one with reservations."""
        while self._accounts:
            place, account = next(iter(self._accounts.items()))
            budget = self._budgets.get(place[0])
            is_over = budget is not None and account.window < _window(budget, now)
            if account.num_reservations or not (is_over or len(self._accounts) > self._max_accounts):
                return
            del self._accounts[place]


def window_start(budget: Budget, now: float) -> float:
    """Return the Unix time at which the window of `now` began; 0 for a budget without a window."""
    return _window(budget, now) * (budget.window_s or 0.0)


def _window(budget: Budget, now: float) -> int:
    return int(now // budget.window_s) if budget.window_s else 0


def _payer(budget: Budget, payers: Payers) -> Payers:
    match budget.per:
        case "tenant":
            return Payers(payers.tenant, "", "")
        case "key":
            return Payers(payers.tenant, payers.key, "")
        case "run":
            return Payers(payers.tenant, "", payers.run)


def _check(name: str, budget: Budget, payers: Payers, account: _Account, wanted: Amount, now: float) -> None:
    limits = (budget.usd, budget.tokens, budget.turns)
    taken = account.spent.plus(account.reserved)
    for unit, limit, used, reserved, need in zip(Amount._fields, limits, taken, account.reserved, wanted, strict=True):
        if limit is None or used + need <= limit * (1 + _DUST):
            continue
        left = max(0.0, limit - used)
        resets_s = window_start(budget, now) + budget.window_s - now if budget.window_s else None
        # When requests in flight end and release the unused part of their reservations, there may be enough.
        soon = used - reserved + need <= limit
        raise OverBudget(
            f'budget "{name}" of this {budget.per}: {_formatted(unit, left)} of {_formatted(unit, limit)} left'
            + (f", while {_formatted(unit, reserved)} are reserved for requests in flight" if reserved > 0 else "")
            + f"; this request may take {_formatted(unit, need)}. "
            + _when(now, resets_s),
            retry_after_s=_SOON_S if soon else resets_s,
        )


def _when(now: float, resets_s: float | None) -> str:
    if resets_s is None:
        return "It does not reset: ask for a larger one"
    at = datetime.fromtimestamp(now + resets_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"It resets at {at}, in {resets_s:,.0f} s"


def _formatted(unit: str, value: float) -> str:
    return f"${value:.6g}" if unit == "usd" else f"{value:,.0f} {unit}"


def budget_need(routing_request: RoutingRequest, fleet: Sequence[WorkerView], *, turns: int = 1) -> Amount:
    """Tokens are exact, as a prompt's and an answer's lengths are bounded; dollars as good as what is known of the workers.
    A question that may escalate may be charged for both attempts."""
    offered = (*routing_request.candidates, *routing_request.fallbacks)
    usd, tokens = 0.0, 0
    for view in fleet:
        prompt = routing_request.prompt_tokens.get(view.worker)
        if (
            prompt is None
            or not {view.model, view.tier} & set(offered)
            or routing_request.asked not in (AUTO, view.model, view.tier)
        ):
            continue
        output = max(0, min(routing_request.max_output_tokens, view.max_context - prompt))
        device_s = view.overhead_s + prompt * view.prefill_s_per_token + output * view.decode_device_s_per_token
        usd, tokens = max(usd, view.usd_per_s * device_s), max(tokens, prompt + output)
    attempts = 2 if routing_request.escalations else 1
    return Amount(USD_MARGIN * attempts * usd, tokens, turns)
