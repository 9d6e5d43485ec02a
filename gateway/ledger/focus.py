"""Export of charges in FOCUS 1.2, the FinOps Foundation's billing format (https://focus.finops.org), for any cost tool.

Our own columns start with `x_`. A line without a request is idle or unattributed device time.
"""

import csv
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO

from gateway.ledger.scope import Scope
from gateway.ledger.spending import By, Idle, Spending

COLUMNS = (
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ChargeCategory",
    "ChargeDescription",
    "BilledCost",
    "EffectiveCost",
    "ListCost",
    "ContractedCost",
    "BillingCurrency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ServiceCategory",
    "ServiceName",
    "ProviderName",
    "PublisherName",
    "InvoiceIssuerName",
    "SubAccountId",
    "SubAccountName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "x_Requests",
    "x_PromptTokens",
    "x_CachedTokens",
    "x_OutputTokens",
    "x_SavedByCacheCost",
    "x_AllOnLargeCost",
)
_RESOURCE: dict[By, str] = {"tenant": "", "model": "Model", "run": "Agent run", "day": ""}


def write_focus(out: IO[str], lines: Sequence[Spending], idle: Sequence[Idle], scope: Scope, by: By) -> None:
    """Write charges by key, then idle and unattributed time. The sum of `BilledCost` is the price of the devices' time."""
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_charged(line, scope, by) for line in lines)
    writer.writerows(row for worker in idle for row in _not_charged(worker, scope))


def _charged(line: Spending, scope: Scope, by: By) -> dict[str, object]:
    row = _row(line.usd, line.device_s, line.first_at, line.last_at, scope)
    if by in ("model", "run"):
        row |= {"ResourceId": line.key, "ResourceName": line.key, "ResourceType": _RESOURCE[by]}
    if by == "day":
        start = datetime.fromisoformat(line.key).replace(tzinfo=UTC).timestamp()
        row |= {"ChargePeriodStart": _time(start), "ChargePeriodEnd": _time(start + 86_400)}
    tenant = line.key if by == "tenant" else line.tenant
    return row | {
        "ChargeDescription": f"Requests by {by}",
        "SubAccountId": tenant,
        "SubAccountName": tenant,
        "x_Requests": line.requests,
        "x_PromptTokens": line.prompt_tokens,
        "x_CachedTokens": line.cached_tokens,
        "x_OutputTokens": line.output_tokens,
        "x_SavedByCacheCost": _usd(line.saved_usd),
        "x_AllOnLargeCost": _usd(line.all_large_usd),
    }


def _not_charged(idle: Idle, scope: Scope) -> Iterable[dict[str, object]]:
    worker = {"ResourceId": idle.worker, "ResourceName": idle.worker, "ResourceType": "Worker"}
    idle_row = _row(idle.idle_usd, idle.idle_s, scope.since, scope.until, scope)
    yield idle_row | worker | {"ChargeDescription": "Idle device time"}
    rest = _row(idle.unattributed_usd, 0.0, scope.since, scope.until, scope)
    yield rest | worker | {"ChargeDescription": "Busy device time of no request in the ledger"}


def _row(usd: float, device_s: float, start: float, end: float, scope: Scope) -> dict[str, object]:
    cost = _usd(usd)
    return {
        "BillingPeriodStart": _time(scope.since),
        "BillingPeriodEnd": _time(scope.until),
        "ChargePeriodStart": _time(start),
        "ChargePeriodEnd": _time(end),
        "ChargeCategory": "Usage",
        "BilledCost": cost,
        "EffectiveCost": cost,
        "ListCost": cost,
        "ContractedCost": cost,
        "BillingCurrency": "USD",
        "ConsumedQuantity": f"{device_s:.9f}",
        "ConsumedUnit": "Seconds",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Headway",
        "ProviderName": "Headway",
        "PublisherName": "Headway",
        "InvoiceIssuerName": "Headway",
    }


def _usd(value: float) -> str:
    return f"{value:.12f}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
