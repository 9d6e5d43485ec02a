"""Report of a load run: percentiles, rates, SLO attainment, rejections, and the sender's own lag. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from gateway.loadtest.client import Response

LATE_S = 0.02
"""Seconds. Above this lag at the 99th percentile the sender distorts the measurement."""


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles in milliseconds, nearest rank; None without values."""

    p50: float | None
    p90: float | None
    p99: float | None


class RejectedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Requests with the same status and error. `p99_ms` is the time to the rejection."""

    status: int
    error: str
    requests: int
    p50_ms: float
    p99_ms: float


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a run. Rates are over `duration_s`. `goodput` is requests a second that were answered within their SLO.

    `attainment` is the share of all sent requests that met it, `admitted_attainment` the share of those answered with 200.
    """

    requests: int
    ok: int
    duration_s: float
    sent_per_s: float
    answered_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    goodput: float
    attainment: float
    admitted_attainment: float | None
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    e2e_ms: Percentiles
    refused: list[RejectedGroup]
    sender_lag_ms: Percentiles

    @property
    def sender_was_late(self) -> bool:
        return (self.sender_lag_ms.p99 or 0.0) > 1000 * LATE_S


class LatencySlo(msgspec.Struct, frozen=True):
    """SLO in seconds; None means no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    end_s: float | None = None

    def is_met(self, seen: Response) -> bool:
        """Return whether a complete response meets the SLO."""
        if not seen.ok or seen.first_s is None:
            return False
        in_time = self.ttft_s is None or seen.first_s <= self.ttft_s
        at_pace = self.tpot_s is None or seen.tpot_s is None or seen.tpot_s <= self.tpot_s
        return in_time and at_pace and (self.end_s is None or seen.end_s <= self.end_s)


def load_report(seen: Sequence[Response], kept: Sequence[bool], duration_s: float) -> LoadReport:
    """Summarize a run. `kept` states for each request whether it met its SLO; `duration_s` is the scheduled time of sending."""
    ok = [response for response in seen if response.ok]
    admitted = [keeps for response, keeps in zip(seen, kept, strict=True) if response.status == 200]
    return LoadReport(
        requests=len(seen),
        ok=len(ok),
        duration_s=duration_s,
        sent_per_s=len(seen) / duration_s,
        answered_per_s=len(ok) / duration_s,
        prompt_tokens_per_s=sum(response.prompt_tokens for response in ok) / duration_s,
        output_tokens_per_s=sum(response.output_tokens for response in ok) / duration_s,
        goodput=sum(kept) / duration_s,
        attainment=sum(kept) / len(seen) if seen else 0.0,
        admitted_attainment=sum(admitted) / len(admitted) if admitted else None,
        ttft_ms=_milliseconds(response.first_s for response in ok if response.first_s is not None),
        tpot_ms=_milliseconds(tpot for response in ok if (tpot := response.tpot_s) is not None),
        e2e_ms=_milliseconds(response.end_s for response in ok),
        refused=_refused(response for response in seen if not response.ok),
        sender_lag_ms=_milliseconds(response.lag_s for response in seen),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank. `values` are sorted and not empty."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _milliseconds(seconds: Iterable[float]) -> Percentiles:
    values = sorted(1000 * value for value in seconds)
    return Percentiles(*(percentile(values, share) if values else None for share in (0.5, 0.9, 0.99)))


def _refused(failed: Iterable[Response]) -> list[RejectedGroup]:
    """Return the groups, the most frequent first."""
    times: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    for response in failed:
        times[response.status, response.error].append(1000 * response.end_s)
    groups = [
        RejectedGroup(
            status=status,
            error=error,
            requests=len(taken),
            p50_ms=percentile(sorted(taken), 0.5),
            p99_ms=percentile(sorted(taken), 0.99),
        )
        for (status, error), taken in times.items()
    ]
    return sorted(groups, key=lambda group: (-group.requests, group.status, group.error))
