"""Claim: `auto` answers as well as the large model for little more than the cost of knowing in advance which questions are
hard.

Method: held-out lab instances, half easy and half hard, single turns (of tool runs the first call), are sent over HTTP to pico,
to nano and to `auto`. Each pass has a fresh gateway, so that no pass finds another's pages. Requests are sent one at a time,
because the cost of a request depends on the others in its batch, and the passes differ in those. Dollars are the gateway's
charges. The cost ratio is to all-nano. Reference: the cheapest assignment by (skill, level) that keeps 98 % of nano's accuracy.
It is found on the same outcomes by moving the cells with the most dollars saved per lost answer to pico first. Oracle: pico if
pico is right or nano is wrong too. Then every second question is sent to `auto` without escalation, and to `auto` with other
quality bars. Random mixing sends every question to nano with the same probability: the straight line between all-pico and
all-nano, which the curve must exceed.
"""

import asyncio
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from backends.zoo.curriculum import CELLS, held_out
from backends.zoo.instance import Instance, agrees
from benchmarks.client import ask
from benchmarks.report import Target, arguments, finish, progress, table
from benchmarks.served import default_policy, gateway

KEPT = 0.98
_SEED = 7
BARS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)


class Outcome(NamedTuple):
    right: bool
    usd: float
    model: str


class Row(NamedTuple):
    """Results of one instance sent to `small`, `large` and `auto`."""

    cell: tuple[str, int]
    small: Outcome
    large: Outcome
    auto: Outcome


def main() -> None:
    args = arguments(__doc__).parse_args()
    size = 4 if args.quick else 24
    instances = [one for skill, level in CELLS for one in held_out(skill, level, size, seed=_SEED)]
    random.Random(_SEED).shuffle(instances)
    passes = [_pass(instances, model) for model in ("pico", "nano", "auto")]
    rows = [Row((one.skill, one.level), *outcomes) for one, *outcomes in zip(instances, *passes, strict=True)]
    print(table(("skill", "level", "small right", "large right", "auto right", "auto to large"), _by_cell(rows)))
    all_large = sum(row.large.usd for row in rows)
    results: dict[str, float] = {
        "accuracy_auto": _mean(row.auto.right for row in rows),
        "accuracy_large": _mean(row.large.right for row in rows),
        "accuracy_small": _mean(row.small.right for row in rows),
        "cost_ratio": sum(row.auto.usd for row in rows) / all_large,
        "cost_ratio_reference": _reference_usd(rows) / all_large,
        "cost_ratio_oracle": sum(_oracle_usd(row) for row in rows) / all_large,
        "cost_ratio_small": sum(row.small.usd for row in rows) / all_large,
        "large_share": _mean(row.auto.model == "nano" for row in rows),
        "instances": len(rows),
    }
    curve = _curve(instances[::2], rows[::2])
    unescalated = curve.pop("without escalation")
    results |= {"accuracy_without_escalation": unescalated.accuracy, "cost_ratio_without_escalation": unescalated.cost_ratio}
    saving = 1.0 - results["cost_ratio_oracle"]
    results["share_of_oracle_saving"] = (1.0 - results["cost_ratio"]) / saving if saving else 0.0
    results["share_of_oracle_saving_without_escalation"] = (1.0 - unescalated.cost_ratio) / saving if saving else 0.0
    for name, point in curve.items():
        results |= {f"accuracy at {name}": point.accuracy, f"cost_ratio at {name}": point.cost_ratio}
    kept = results["accuracy_auto"] / results["accuracy_large"]
    above = results["cost_ratio"] - results["cost_ratio_reference"]
    targets = [
        Target("accuracy_kept", kept, ">=", KEPT),
        Target("above_reference", above, "<=", 0.02),
        Target("least_over_mixing", min(point.over_mixing for point in curve.values()), ">=", 0.0),
    ]
    finish("cost_quality", results, targets)


class Point(NamedTuple):
    """A point of the curve. `over_mixing` is the accuracy above that of random mixing at the same dollars."""

    accuracy: float
    cost_ratio: float
    kept: float
    over_mixing: float
    large_share: float


def _curve(instances: list[Instance], rows: list[Row]) -> dict[str, Point]:
    """Return the points by policy. `rows` are the earlier passes' results for the same questions."""
    variants = {f"bar {bar:g}": (r"quality_bar: [\d.]+", f"quality_bar: {bar:g}") for bar in BARS}
    variants["without escalation"] = (r"\n +escalate:.*", "")
    small, large = _mean(row.small.right for row in rows), _mean(row.large.right for row in rows)
    all_large = sum(row.large.usd for row in rows)
    small_ratio = sum(row.small.usd for row in rows) / all_large
    found = {}
    for name, (pattern, instead) in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            policy = Path(folder) / "policy.yaml"
            policy.write_text(re.sub(pattern, instead, default_policy()))
            outcomes = _pass(instances, "auto", policy, name)
        accuracy, ratio = _mean(one.right for one in outcomes), sum(one.usd for one in outcomes) / all_large
        mixed = small + (large - small) * min(1.0, max(0.0, (ratio - small_ratio) / (1.0 - small_ratio)))
        share = _mean(one.model == "nano" for one in outcomes)
        found[name] = Point(accuracy, ratio, accuracy / large, accuracy - mixed, share)
    columns = ("policy", "accuracy", "cost ratio", "kept", "over mixing", "answered by large")
    print(table(columns, [(name, *point) for name, point in found.items()]))
    return found


def _pass(instances: list[Instance], model: str, policy: Path | None = None, name: str = "") -> list[Outcome]:
    progress(f"asking {len(instances)} questions of {model} {name}")
    with gateway(policy) if policy else gateway() as url:
        return asyncio.run(_ask_all(url, instances, model))


async def _ask_all(url: str, instances: list[Instance], model: str) -> list[Outcome]:
    outcomes = []
    async with aiohttp.ClientSession() as http:
        for instance in instances:
            outcomes.append(await _ask(http, url, instance, model))
            if len(outcomes) % 200 == 0:
                progress(f"{model}: {len(outcomes)}/{len(instances)}")
    return outcomes


async def _ask(http: aiohttp.ClientSession, url: str, instance: Instance, model: str) -> Outcome:
    turn = next(i for i, message in enumerate(instance.messages) if message["role"] == "assistant")
    body: dict[str, Any] = {"model": model, "messages": instance.messages[:turn], "max_tokens": 200, "temperature": 0}
    if instance.tools:
        body["tools"] = instance.tools
    answer = await ask(http, url, body)
    right = agrees(answer.message, instance.messages[turn])
    return Outcome(right, answer.headway["cost_usd"], answer.headway["model"])


def _reference_usd(rows: list[Row]) -> float:
    """Return the reference cost. All cells start on large; cells move to small while enough answers are kept, best saving per
    loss first."""
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.cell].append(row)
    usd = sum(row.large.usd for row in rows)
    spare = (1 - KEPT) * sum(row.large.right for row in rows)
    moves = []
    for members in cells.values():
        saved = sum(row.large.usd - row.small.usd for row in members)
        lost = sum(row.large.right - row.small.right for row in members)
        if saved > 0:
            moves.append((saved / lost if lost > 0 else float("inf"), saved, lost))
    for _, saved, lost in sorted(moves, reverse=True):
        if lost <= spare:
            usd, spare = usd - saved, spare - max(0, lost)
    return usd


def _oracle_usd(row: Row) -> float:
    return row.small.usd if row.small.right or not row.large.right else row.large.usd


def _by_cell(rows: list[Row]) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = []
    for cell in CELLS:
        mine = [row for row in rows if row.cell == cell]
        rights = [_mean(getattr(row, who).right for row in mine) for who in ("small", "large", "auto")]
        lines.append((*cell, *rights, _mean(row.auto.model == "nano" for row in mine)))
    return lines


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


if __name__ == "__main__":
    main()
