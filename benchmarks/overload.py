"""Claim: at two and three times the load that the machine carries, requests meet their SLO or get a fast 429.

Method: real workers with the shipped models behind `headway serve`; single questions, agent runs of four turns and batch work,
lengths and bursts as in azure2023_conv. First, behind the baseline: TTFT of every item alone, and the capacity, as items a
second that 32 closed-loop clients complete. Generator and gateway share the machine's cores with the workers, so the capacity
includes them. Then levels of 0.5 to 3 times that, open loop, without retries. A request's SLO is the larger of its class (TTFT
200 ms, 400 ms; batch: an end within 60 s) and four times its own time alone. Goodput is answers within their SLO that ended
within the level, per second. Baseline: the same gateway, workers and SLOs, first come first served, without rejections.
"""

import argparse
import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import uvloop

from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.served import gateway
from benchmarks.traffic import Item, Played, capacity, play, pool, trace_of
from gateway.loadtest.arrivals import Planned, scaled
from gateway.loadtest.client import Response, open_loop, open_session
from gateway.loadtest.report import LatencySlo, LoadReport, load_report, percentile

POLICY, FIRST_COME = ROOT / "benchmarks" / "overload.yaml", ROOT / "benchmarks" / "first_come.yaml"
LEVELS = (0.5, 1.0, 1.5, 2.0, 3.0)
CLASSES = {"interactive": LatencySlo(ttft_s=0.2), "agent": LatencySlo(ttft_s=0.4), "batch": LatencySlo(end_s=60.0)}
ISOLATED_TIMES = 4.0
_TIMEOUT_S = 900.0


class Setup(NamedTuple):
    """Measured before the levels. `isolated_s` is each item's TTFT alone, by turn; `capacity` is in items a second."""

    trace: list[Planned]
    items: list[Item]
    isolated_s: list[tuple[float, ...]]
    capacity: float


class Level(NamedTuple):
    """A level's results. `goodput` counts answers that ended within it; the report's own counts all that were sent."""

    times: float
    goodput: float
    figures: LoadReport
    by_kind: dict[str, LoadReport]
    runs: int
    abandoned: int


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, help="of each level (120; 6 with --quick)")
    parser.add_argument("--levels", type=_levels, default=LEVELS, help="multiples of the capacity, by commas")
    args = parser.parse_args()
    seconds = args.seconds or (6.0 if args.quick else 120.0)
    trace = trace_of(args.data)
    items = pool(trace, 20 if args.quick else 100, seed=6)
    with gateway(FIRST_COME, _quiet()) as url:
        setup = uvloop.run(_prepare(url, trace, items, 5.0 if args.quick else 30.0))
        baseline = uvloop.run(_level(url, "baseline", setup, 2.0, seconds))
    with gateway(POLICY, _quiet()) as url:
        levels = uvloop.run(_all(url, setup, args.levels, seconds))
    _tell([*levels, baseline])
    finish("overload", _results(setup, levels, baseline, seconds), _targets(levels, baseline))


def _levels(text: str) -> tuple[float, ...]:
    levels = tuple(float(part) for part in text.split(","))
    if not levels or min(levels) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of multiples of the capacity")
    return levels


def _quiet() -> dict[str, str]:
    return {"HEADWAY_LOG_LEVEL": "ERROR"}


async def _prepare(url: str, trace: list[Planned], items: list[Item], seconds: float) -> Setup:
    async with open_session(_TIMEOUT_S) as http:
        for number, item in enumerate(items[:8]):
            await play(http, url, item, number, index=0, name="warm", pauses=False)
        isolated = []
        for number, item in enumerate(items):
            played = await play(http, url, item, number, index=number, name="alone", pauses=False)
            isolated.append(tuple(_first(seen) for seen in played.seen))
        progress(f"alone: {1000 * percentile(sorted(one[0] for one in isolated), 0.5):.0f} ms to the first token in the middle")
        carried = await capacity(http, url, items, seconds, with_slo=True)
        progress(f"capacity: {carried:.2f} items a second")
    return Setup(trace, items, isolated, carried)


def _first(seen: Response) -> float:
    if not seen.ok or seen.first_s is None:
        raise RuntimeError(f"a question alone was not answered: {seen.status} {seen.error}")
    return seen.first_s


async def _all(url: str, setup: Setup, times: Sequence[float], seconds: float) -> list[Level]:
    async with open_session(_TIMEOUT_S) as http:
        for number, item in enumerate(setup.items[:20]):
            await play(http, url, item, number, index=0, name="warm", pauses=False)
    return [await _level(url, "headway", setup, one, seconds) for one in times]


async def _level(url: str, name: str, setup: Setup, times: float, seconds: float) -> Level:
    """Send at this multiple of the capacity for `seconds`, and wait until all have ended."""
    plan = scaled(setup.trace, times * setup.capacity, seconds)
    rng = random.Random(f"{times}")
    indices = [rng.randrange(len(setup.items)) for _ in plan]
    counts = Counter[str]()

    async with open_session(_TIMEOUT_S) as http:

        async def send(number: int, due: float) -> Played:
            index = indices[number]
            counts["sent"] += 1
            unlike = f"{name}-{times:g}"
            played = await play(http, url, setup.items[index], number, index=index, name=unlike, due=due)
            counts["ended"] += 1
            return played

        telling = asyncio.create_task(_progress(f"{name} {times:g}x", len(plan), counts))
        began = time.perf_counter()
        try:
            played = await open_loop([one.at_s for one in plan], send)
        finally:
            telling.cancel()
    return judged(setup, times, played, seconds, until=began + seconds)


async def _progress(what: str, total: int, counts: Counter[str]) -> None:
    while True:
        await asyncio.sleep(5.0)
        progress(f"{what}: {counts['sent']:,} of {total:,} sent, {counts['ended']:,} ended")


def judged(setup: Setup, times: float, played: Sequence[Played], seconds: float, until: float) -> Level:
    """Compare every request with its own SLO. A run is abandoned if a turn after its first gets no answer.

    Answers that end after `until` are not goodput of this level: requests queued during it complete when no more arrive.
    """
    seen: dict[str, list[Response]] = {kind: [] for kind in CLASSES}
    kept: dict[str, list[bool]] = {kind: [] for kind in CLASSES}
    runs = abandoned = in_time = 0
    for one in played:
        item = setup.items[one.item]
        for turn, (request, ended_at) in enumerate(zip(one.seen, one.ended_at, strict=True)):
            seen[item.kind].append(request)
            kept[item.kind].append(slo_of(item, setup.isolated_s[one.item][turn]).is_met(request))
            in_time += kept[item.kind][-1] and ended_at <= until
        if item.kind == "agent" and one.seen[0].ok:
            runs += 1
            abandoned += not one.seen[-1].ok
    every = [request for kind in CLASSES for request in seen[kind]]
    by_kind = {kind: load_report(seen[kind], kept[kind], seconds) for kind in CLASSES}
    whole = load_report(every, [k for kind in CLASSES for k in kept[kind]], seconds)
    return Level(times, in_time / seconds, whole, by_kind, runs, abandoned)


def slo_of(item: Item, isolated_s: float) -> LatencySlo:
    slo = CLASSES[item.kind]
    return slo if slo.ttft_s is None else LatencySlo(ttft_s=max(slo.ttft_s, ISOLATED_TIMES * isolated_s))


def _tell(levels: Sequence[Level]) -> None:
    rows: list[tuple[object, ...]] = []
    for place, level in enumerate(levels):
        who = "first come" if place == len(levels) - 1 else "headway"
        for kind, one in (("all", level.figures), *level.by_kind.items()):
            refused = sum(refusal.requests for refusal in one.refused)
            slowest = max((refusal.p99_ms for refusal in one.refused), default=0.0)
            kept = 1.0 if one.admitted_attainment is None else one.admitted_attainment
            goodput = level.goodput if kind == "all" else one.goodput
            row = (one.requests, one.ok, refused, slowest, goodput, kept, one.ttft_ms.p50 or 0.0, one.ttft_ms.p99 or 0.0)
            rows.append((who, f"{level.times:g}x", kind, *row))
    header = ("who", "load", "kind", "requests", "answered", "refused", "refusal p99 ms", "goodput/s", "admitted kept")
    print(table((*header, "TTFT p50 ms", "p99 ms"), rows))


def _targets(levels: Sequence[Level], baseline: Level) -> list[Target]:
    peak = max(level.goodput for level in levels) or 1.0
    targets = [
        Target(f"goodput_{level.times:g}x_of_peak", level.goodput / peak, ">=", 0.9) for level in levels if level.times >= 2
    ]
    twice = next((level for level in levels if level.times == baseline.times), None)
    if twice:
        ratio = twice.goodput / max(baseline.goodput, 1e-9)
        targets.append(Target("goodput_2x_over_first_come", ratio, ">=", 2.5))
    kept = [level.figures.admitted_attainment for level in levels if level.figures.admitted_attainment is not None]
    targets.append(Target("admitted_that_kept_their_slo", min(kept, default=0.0), ">=", 0.97))
    slowest = max((refusal.p99_ms for level in levels for refusal in level.figures.refused), default=0.0)
    targets.append(Target("refusal_p99_ms", slowest, "<=", 50.0))
    targets.append(Target("abandoned_runs", sum(level.abandoned for level in levels), "<=", 0))
    return targets


def _results(setup: Setup, levels: Sequence[Level], baseline: Level, seconds: float) -> dict[str, Any]:
    return {
        "capacity_items_per_s": setup.capacity,
        "seconds_a_level": seconds,
        "cores": os.cpu_count(),
        "levels": [_level_result(level) for level in levels],
        "first_come": _level_result(baseline),
    }


def _level_result(level: Level) -> dict[str, Any]:
    return {
        "times_capacity": level.times,
        "goodput_in_time_per_s": level.goodput,
        "runs": level.runs,
        "abandoned_runs": level.abandoned,
        "all": _figures_result(level.figures),
        **{kind: _figures_result(one) for kind, one in level.by_kind.items()},
    }


def _figures_result(one: LoadReport) -> dict[str, Any]:
    return {
        "requests": one.requests,
        "answered": one.ok,
        "goodput_per_s": one.goodput,
        "attainment": one.attainment,
        "admitted_attainment": one.admitted_attainment,
        "ttft_p50_ms": one.ttft_ms.p50,
        "ttft_p99_ms": one.ttft_ms.p99,
        "sender_lag_p99_ms": one.sender_lag_ms.p99,
        "refused": [{"status": r.status, "error": r.error, "requests": r.requests, "p99_ms": r.p99_ms} for r in one.refused],
    }


if __name__ == "__main__":
    main()
