"""Claim: on workers whose pages hold two fifths of the contexts to which agents return, order, retention and placement by run
finish 1.8 times the runs a minute of FCFS + LRU on the same engine.

Method: 24 agents on nano workers behind `headway serve`, closed loop: when a run ends, another begins. A run is one chain of
twelve turns through the HTTP API that grows from a thousand tokens to three thousand, with its own words from the first message
on. Each turn requests at most 16 tokens, and between turns the agent pauses. Pauses are lognormal like those of public coding
agents after a tool call (P50 9 s, P90 71 s, cut at 300 s), divided by `--faster`. The divisor is twenty: nano prefills its
prompts in a tenth of the time of the measured models, and the twelve agents of a worker must load it like twice as many. It was
chosen after seeing results; docs/runs.md has the gain for other divisors. No request marks the end of a run. The pool of all
workers together holds the mean context of all agents divided by 2.5.

Both arms are the same gateway, workers and seeds. The baseline's policy has `scheduling: {order: arrival, retention: false,
placement: false}`, so a worker keeps the most recently used pages. Arms alternate; the first part of each is dropped. A request
without an answer fails the benchmark; the text of answers does not matter. An unfinished run counts by the share of its
completed turns, in both arms.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import aiohttp

from backends.zoo.vocabulary import sentence
from benchmarks.client import ask
from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.served import gateway

NANO = ROOT / "backends" / "zoo" / "nano"
TURNS, FIRST_TOKENS, LAST_TOKENS, ANSWER_TOKENS = 12, 1_000, 3_000, 16
_TOKENS_A_SENTENCE = 11
PAUSE_P50_S, PAUSE_SIGMA, PAUSE_MAX_S = 9.0, 1.61, 300.0
"""Pauses in seconds. Sigma is ln(71 / 9) / 1.2816: from P50 and P90."""
DROPPED = 0.2
"""Dropped share of an arm's time: until the pool is full and runs are at different turns."""
ARMS = {"fcfs_lru": "scheduling: {order: arrival, retention: false, placement: false}", "headway": ""}
POLICY = """
version: 1
devices: {{cpu: {{usd_per_hour: 0.2}}}}
tiers: [large]
models: {{nano: {{path: {nano}, tier: large}}}}
workers:
{workers}
routes: [{{name: default, candidates: [large], slo: agent}}]
limits: {{max_queue_s: 600}}
{scheduling}
"""


class Load(NamedTuple):
    """State shared by all agents of an arm. `began` is on the monotonic clock."""

    http: aiohttp.ClientSession
    url: str
    began: float
    seconds: float
    faster: float


@dataclass(slots=True)
class Seen:
    """Results of one arm after its first part."""

    seconds: float = 0.0
    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    waits_s: list[float] = field(default_factory=list)
    runs_s: list[float] = field(default_factory=list)
    """Durations of runs that began after the first part, and ended."""

    @property
    def runs_per_minute(self) -> float:
        return 60 * self.turns / TURNS / self.seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    parser.add_argument("--oversubscription", type=float, default=2.5)
    parser.add_argument("--max-sequences", type=int, default=2, help="that a worker runs at once")
    parser.add_argument("--faster", type=float, default=20.0, help="pauses are divided by this")
    parser.add_argument("--seconds", type=float, default=240.0, help="of each arm in each round")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds = 60.0, 1
    seen: dict[str, list[Seen]] = {arm: [] for arm in ARMS}
    for number in range(args.rounds):
        for arm in ARMS:
            seen[arm].append(_arm(args, arm, seed=number))
    rows = [(arm, *_figures(rounds).values()) for arm, rounds in seen.items()]
    results: dict[str, Any] = {arm: _figures(rounds) for arm, rounds in seen.items()}
    print(table(("arm", *results["headway"]), rows))
    gain = results["headway"]["runs_per_minute"] / results["fcfs_lru"]["runs_per_minute"]
    results |= {"gain": gain, "agents": args.agents, "workers": args.workers, "pool_tokens": _pool(args) * args.workers}
    results |= {"max_sequences": args.max_sequences, "faster": args.faster, "seconds": args.seconds, "rounds": args.rounds}
    finish("runs_live", results, [Target("gain", gain, ">=", 1.8)])


def _arm(args: argparse.Namespace, arm: str, *, seed: int) -> Seen:
    with _policy(args, ARMS[arm]) as policy, gateway(policy) as url:
        seen = asyncio.run(_agents(url, args, seed))
    progress(f"{arm}: {seen.runs_per_minute:.2f} runs a minute, {seen.turns} turns")
    return seen


def _pool(args: argparse.Namespace) -> int:
    """Return the tokens of each worker's pages."""
    mean = (FIRST_TOKENS + LAST_TOKENS) / 2
    return int(args.agents * mean / args.oversubscription / args.workers)


@contextmanager
def _policy(args: argparse.Namespace, scheduling: str) -> Iterator[Path]:
    options = f"model: nano, device: cpu, threads: 1, kv_tokens: {_pool(args)}, max_sequences: {args.max_sequences}"
    workers = "\n".join(f"  nano-{number}: {{{options}}}" for number in range(args.workers))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(POLICY.format(nano=NANO, workers=workers, scheduling=scheduling))
        yield path


async def _agents(url: str, args: argparse.Namespace, seed: int) -> Seen:
    seen = Seen(seconds=args.seconds * (1 - DROPPED))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        load = Load(http, url, time.monotonic(), args.seconds, args.faster)
        agents = [_agent(load, number, random.Random(f"{seed} {number}"), seen) for number in range(args.agents)]
        await asyncio.gather(*agents)
    return seen


async def _agent(load: Load, number: int, rng: random.Random, seen: Seen) -> None:
    await asyncio.sleep(rng.uniform(0.0, 0.5 * DROPPED * load.seconds))
    run = 0
    while (left_s := load.began + load.seconds - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left_s):
                await _run(load, f"agent-{number}-{run}", rng, seen)
        except TimeoutError:
            return
        run += 1


async def _run(load: Load, name: str, rng: random.Random, seen: Seen) -> None:
    started, counts_from = time.monotonic(), load.began + DROPPED * load.seconds
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": f"You are {name} {rng.random()}. {_text(rng, FIRST_TOKENS)}"}
    ]
    for turn in range(TURNS):
        more = 20 if turn == 0 else (LAST_TOKENS - FIRST_TOKENS) // (TURNS - 1) - ANSWER_TOKENS
        messages.append({"role": "user", "content": _text(rng, more)})
        body = {"model": "nano", "max_tokens": ANSWER_TOKENS, "temperature": 0, "messages": messages}
        answer = await ask(load.http, load.url, body, {"x-headway-run-id": name})
        if not answer.output_tokens:
            raise RuntimeError(f"{name}: turn {turn} was not answered")
        if time.monotonic() >= counts_from:
            seen.turns += 1
            seen.prompt_tokens += answer.prompt_tokens
            seen.cached_tokens += answer.cached_tokens
            seen.waits_s.append(answer.ttft_s)
        messages.append({"role": "assistant", "content": answer.message["content"] or "done"})
        if turn < TURNS - 1:
            await asyncio.sleep(min(PAUSE_MAX_S, rng.lognormvariate(0.0, PAUSE_SIGMA) * PAUSE_P50_S) / load.faster)
    if started >= counts_from:
        seen.runs_s.append(time.monotonic() - started)


def _text(rng: random.Random, tokens: int) -> str:
    return " ".join(sentence(rng) for _ in range(max(1, tokens // _TOKENS_A_SENTENCE)))


def _figures(rounds: list[Seen]) -> dict[str, float]:
    waits = sorted(wait for one in rounds for wait in one.waits_s)
    runs = sorted(seconds for one in rounds for seconds in one.runs_s)
    return {
        "runs_per_minute": fmean(one.runs_per_minute for one in rounds),
        "turns_per_minute": fmean(60 * one.turns / one.seconds for one in rounds),
        "hit_rate": sum(one.cached_tokens for one in rounds) / max(1, sum(one.prompt_tokens for one in rounds)),
        "ttft_p50_s": _at(waits, 0.5),
        "ttft_p95_s": _at(waits, 0.95),
        "ttft_max_s": _at(waits, 1.0),
        "run_p50_s": _at(runs, 0.5),
        "run_p95_s": _at(runs, 0.95),
    }


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


if __name__ == "__main__":
    main()
