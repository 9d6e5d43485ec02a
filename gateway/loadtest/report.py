"""What a load run came to: percentiles, rates, promises kept, refusals, and whether the sender itself was late. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from gateway.loadtest.client import Response

LATE_S = 0.02
"""A sender that is later than this at the 99th percentile has measured itself as well."""


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds, nearest rank; None where there was nothing."""

    p50: float | None
    p90: float | None
    p99: float | None


class RejectedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Requests with one status and error; `p99_ms` is how long they took to be told."""

    status: int
    error: str
    requests: int
    p50_ms: float
    p99_ms: float


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """Rates are over `duration_s`. `goodput` is of requests a second that were answered and kept every promise; `attainment` is
    the share of all that were sent which did, `admitted_attainment` of those that were answered with 200."""

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
    """Seconds; what is None is not promised."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    end_s: float | None = None

    def is_met(self, seen: Response) -> bool:
        """By a whole answer."""
        if not seen.ok or seen.first_s is None:
            return False
        in_time = self.ttft_s is None or seen.first_s <= self.ttft_s
        at_pace = self.tpot_s is None or seen.tpot_s is None or seen.tpot_s <= self.tpot_s
        return in_time and at_pace and (self.end_s is None or seen.end_s <= self.end_s)


def load_report(seen: Sequence[Response], kept: Sequence[bool], duration_s: float) -> LoadReport:
    """`kept` says of each whether it kept its promises; `duration_s` is the time over which they were to be sent."""
    ok = [one for one in seen if one.ok]
    admitted = [keeps for one, keeps in zip(seen, kept, strict=True) if one.status == 200]
    return LoadReport(
        requests=len(seen),
        ok=len(ok),
        duration_s=duration_s,
        sent_per_s=len(seen) / duration_s,
        answered_per_s=len(ok) / duration_s,
        prompt_tokens_per_s=sum(one.prompt_tokens for one in ok) / duration_s,
        output_tokens_per_s=sum(one.output_tokens for one in ok) / duration_s,
        goodput=sum(kept) / duration_s,
        attainment=sum(kept) / len(seen) if seen else 0.0,
        admitted_attainment=sum(admitted) / len(admitted) if admitted else None,
        ttft_ms=_milliseconds(one.first_s for one in ok if one.first_s is not None),
        tpot_ms=_milliseconds(tpot for one in ok if (tpot := one.tpot_s) is not None),
        e2e_ms=_milliseconds(one.end_s for one in ok),
        refused=_refused(one for one in seen if not one.ok),
        sender_lag_ms=_milliseconds(one.lag_s for one in seen),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; `values` are sorted and not empty."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _milliseconds(seconds: Iterable[float]) -> Percentiles:
    values = sorted(1000 * value for value in seconds)
    return Percentiles(*(percentile(values, share) if values else None for share in (0.5, 0.9, 0.99)))


def _refused(failed: Iterable[Response]) -> list[RejectedGroup]:
    """The most frequent first."""
    times: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    for one in failed:
        times[one.status, one.error].append(1000 * one.end_s)
    found = [
        RejectedGroup(
            status=status,
            error=error,
            requests=len(taken),
            p50_ms=percentile(sorted(taken), 0.5),
            p99_ms=percentile(sorted(taken), 0.99),
        )
        for (status, error), taken in times.items()
    ]
    return sorted(found, key=lambda one: (-one.requests, one.status, one.error))
