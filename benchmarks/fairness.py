"""Claim: a tenant that floods the gateway takes nothing from the others.

Method: real workers with the shipped models, four tenants of equal weight, single questions with lengths as in azure2023_conv.
Everything is queued and nothing is rejected for its SLO. Capacity comes first: questions a second that 32 clients of one tenant
complete. Then ash alone, Poisson at a tenth of the capacity; then the same questions at the same times, while oak sends 20
times as many. Last, all four at 0.5, 0.75, 1 and 2 times the capacity at once, at least twice the quarter of each. Jain's index
over each tenant's output tokens while all were sending is (sum x)^2 / (n sum x^2).
"""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import uvloop

from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.served import gateway
from benchmarks.traffic import Item, capacity, play, pool, trace_of
from gateway.loadtest.arrivals import steady
from gateway.loadtest.client import Response, open_loop, open_session
from gateway.loadtest.report import percentile

POLICY = ROOT / "benchmarks" / "fairness.yaml"
TENANTS = ("ash", "birch", "cedar", "oak")
SMALL_SHARE, TIMES = 0.1, 20
SHARES = {"ash": 0.5, "birch": 0.75, "cedar": 1.0, "oak": 2.0}
"""Rates as shares of the capacity; each is at least twice a quarter."""
_TIMEOUT_S = 900.0


class Answered(NamedTuple):
    """An ended request. `at_s` is its end in seconds after the start."""

    tenant: str
    seen: Response
    at_s: float


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, help="of each of the three parts (60; 6 with --quick)")
    args = parser.parse_args()
    seconds = args.seconds or (6.0 if args.quick else 60.0)
    items = [item for item in pool(trace_of(args.data), 20 if args.quick else 100, seed=9) if item.kind == "interactive"]
    keys = {f"{tenant.upper()}_KEY": f"key-of-{tenant}" for tenant in TENANTS}
    with gateway(POLICY, {**keys, "HEADWAY_LOG_LEVEL": "ERROR"}) as url:
        uvloop.run(_warm(url, items))
        carried = uvloop.run(_capacity(url, items, 5.0 if args.quick else 20.0))
        small = {"ash": SMALL_SHARE * carried}
        alone = uvloop.run(_send(url, items, small, seconds, "alone"))
        flooded = uvloop.run(_send(url, items, {**small, "oak": TIMES * small["ash"]}, seconds, "flood"))
        together = uvloop.run(_send(url, items, {name: share * carried for name, share in SHARES.items()}, seconds, "all"))
    p95 = {name: 1000 * _ttft(answers, "ash", 0.95) for name, answers in (("alone", alone), ("flooded", flooded))}
    p50 = {name: 1000 * _ttft(answers, "ash", 0.5) for name, answers in (("alone", alone), ("flooded", flooded))}
    given = _given(together, seconds)
    print(table(("ash", "TTFT p50 ms", "p95 ms", "answered"), [
        (name, p50[name], p95[name], sum(one.seen.ok for one in answers if one.tenant == "ash"))
        for name, answers in (("alone", alone), ("flooded", flooded))
    ]))  # fmt: skip
    print(table(("tenant", "sent, of the capacity", "output tokens"), [(name, SHARES[name], given[name]) for name in TENANTS]))
    results = {
        "capacity_per_s": carried,
        "seconds_a_part": seconds,
        "ash_ttft_p50_ms": p50,
        "ash_ttft_p95_ms": p95,
        "ash_not_answered": sum(not one.seen.ok for one in flooded if one.tenant == "ash"),
        "output_tokens": given,
    }
    targets = [
        Target("ash_p95_ttft_over_alone", p95["flooded"] / p95["alone"], "<=", 1.5),
        Target("jain_of_equal_weights", jain([given[name] for name in TENANTS]), ">=", 0.95),
    ]
    finish("fairness", results, targets)


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 if all are equal, 1 / n if one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


async def _warm(url: str, items: Sequence[Item]) -> None:
    async with open_session(_TIMEOUT_S) as http:
        for number, item in enumerate(items[:16]):
            await play(http, url, item, number, index=0, name="warm", with_slo=False, headers=_key("cedar"))


async def _capacity(url: str, items: Sequence[Item], seconds: float) -> float:
    async with open_session(_TIMEOUT_S) as http:
        carried = await capacity(http, url, items, seconds, _key("cedar"))
    progress(f"capacity: {carried:.2f} questions a second")
    return carried


async def _send(url: str, items: Sequence[Item], rates: Mapping[str, float], seconds: float, name: str) -> list[Answered]:
    """Send each tenant's own arrivals at its rate, the same ones each time."""
    plan: list[tuple[float, str, int]] = []
    for tenant, rate in rates.items():
        rng = random.Random(tenant)
        times = steady(rate, seconds, (0, 0), arrivals="poisson", rng=rng)
        plan += [(one.at_s, tenant, rng.randrange(len(items))) for one in times]
    plan.sort()
    began, ended = time.perf_counter(), Counter[str]()

    async with AsyncExitStack() as stack:
        # Each tenant has its own connections: tenants are separate clients, and none waits for another's connection.
        clients = {tenant: await stack.enter_async_context(open_session(_TIMEOUT_S)) for tenant in rates}

        async def send(number: int, due: float) -> Answered:
            _, tenant, index = plan[number]
            unlike, http = f"{name}-{tenant}", clients[tenant]
            played = await play(
                http, url, items[index], number, index=index, name=unlike, due=due, with_slo=False, headers=_key(tenant)
            )
            ended[tenant] += 1
            return Answered(tenant, played.seen[0], time.perf_counter() - began)

        progress(f"{name}: {len(plan):,} questions in {seconds:g} s")
        answers = await open_loop([at for at, *_ in plan], send)
    progress(f"{name}: {dict(ended)} ended")
    return answers


def _key(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{tenant}"}


def _ttft(answers: Sequence[Answered], tenant: str, share: float) -> float:
    times = sorted(one.seen.first_s for one in answers if one.tenant == tenant and one.seen.ok and one.seen.first_s is not None)
    if not times:
        raise RuntimeError(f"{tenant} got no answer")
    return percentile(times, share)


def _given(answers: Sequence[Answered], seconds: float) -> dict[str, int]:
    """Return output tokens of answers that ended while all were sending, after a quarter of the time for the queue to fill."""
    given = dict.fromkeys(TENANTS, 0)
    for one in answers:
        if 0.25 * seconds <= one.at_s < seconds:
            given[one.tenant] += one.seen.output_tokens
    return given


if __name__ == "__main__":
    main()
