"""Claim: whatever dies, answers are right or honest errors, nothing leaks, and the books balance.

Method: real workers with the shipped models, few pages, budgets on every request. 12 clients send their next request after each
answer: single questions, agent runs and long work, of which one in twelve disconnects in the middle. Every few seconds a random
worker is killed (SIGKILL), except in the last fifth of the time. Every answer is greedy and compared with the same model's
earlier answer to the same messages, alone. A difference between two tokens within 0.05 of each other is a tie, because a batch
sums in another order. Runs are remembered for a minute and their budgets for two, so that bounded structures are full when
memory is measured. At the end, idle: free + cached pages = all pages, no budget has a reservation, budgets' charges equal the
ledger's, and every request is in the ledger once. RSS is the gateway's, fitted after the first fifth.
"""

import asyncio
import os
import random
import re
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import uvloop

from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.served import gateway
from benchmarks.traffic import Item, play, pool, trace_of
from gateway.loadtest.client import Response, open_session

POLICY = ROOT / "benchmarks" / "soak.yaml"
MODELS = ("pico", "nano")
CALLERS = 12
KILL_EVERY_S = 20.0
LEAVES = 1 / 12
HONEST = frozenset({"worker_lost", "no_worker", "overloaded"})
"""Errors that a client may get after a worker died."""
TIE = 0.05
CALM_SHARE = WARM_SHARE = 0.2
_TIMEOUT_S, _IDLE_S = 300.0, 120.0
_SAMPLE_EVERY_S = 1.0


class Wrong(NamedTuple):
    """An answer that differs from the expected one."""

    item: int
    model: str
    turn: int
    expected: str
    got: str


class Soak:
    """State of the run. `expected` maps (item, model) to its answers by turn. Each run has a name, which identifies its rows in
    the ledger."""

    def __init__(self, http: aiohttp.ClientSession, url: str, items: Sequence[Item], seconds: float) -> None:
        self.http, self.url, self.items, self.seconds = http, url, items, seconds
        self.expected: dict[tuple[int, str], tuple[str, ...]] = {}
        self.counts = Counter[str]()
        self.sent: dict[str, int] = {}
        self.left: set[str] = set()
        self.wrong: list[Wrong] = []
        self.rss: list[tuple[float, float]] = []
        self._began = 0.0

    async def learn(self) -> None:
        """Record each model's answer to each item, alone."""
        for index in range(len(self.items)):
            for model in MODELS:
                run = f"learn-{index}-{model}"
                seen = await self._play(index, model, run)
                if not all(response.ok for response in seen):
                    raise RuntimeError(f"{model} did not answer a question alone: {seen[-1].status} {seen[-1].error}")
                self.expected[index, model] = tuple(response.text for response in seen)
        progress(f"learned {len(self.expected)} answers")

    async def run(self) -> None:
        self._began = time.perf_counter()
        killing, sampling = asyncio.create_task(self._kill()), asyncio.create_task(self._sample())
        try:
            await asyncio.gather(*map(self._ask_on, range(CALLERS)))
        finally:
            killing.cancel()
            sampling.cancel()
        await self.idle()

    async def _ask_on(self, caller: int) -> None:
        rng, number = random.Random(caller), 0
        while time.perf_counter() < self._began + self.seconds:
            index, model, run = rng.randrange(len(self.items)), rng.choice(MODELS), f"soak-{caller}-{number}"
            number += 1
            if rng.random() < LEAVES:
                await self._leave(index, model, run, rng.uniform(0.05, 1.0))
                continue
            seen = await self._play(index, model, run)
            self._judge(index, model, seen)
            if not seen[-1].ok:
                await asyncio.sleep(0.2)

    async def _play(self, index: int, model: str, run: str) -> tuple[Response, ...]:
        played = await play(
            self.http, self.url, self.items[index], index, index=index, name="soak", with_slo=False, pauses=False, model=model,
            headers={"x-headway-run-id": run},
        )  # fmt: skip
        self.sent[run] = len(played.seen)
        return played.seen

    async def _leave(self, index: int, model: str, run: str, after_s: float) -> None:
        asked = asyncio.create_task(self._play(index, model, run))
        await asyncio.wait({asked}, timeout=after_s)
        if asked.done():
            self._judge(index, model, asked.result())
            return
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        self.left.add(run)
        self.counts["left"] += 1

    def _judge(self, index: int, model: str, seen: Sequence[Response]) -> None:
        for turn, response in enumerate(seen):
            expected = self.expected[index, model][turn]
            if response.ok and response.text == expected:
                self.counts["right"] += 1
            elif response.ok:
                self.wrong.append(Wrong(index, model, turn, expected, response.text))
                return  # later turns depend on it
            elif response.error in HONEST:
                self.counts[response.error] += 1
                if not expected.startswith(response.text):
                    self.wrong.append(Wrong(index, model, turn, expected, response.text))
            else:
                self.counts[f"unexpected: {response.status} {response.error}"] += 1

    async def _kill(self) -> None:
        rng = random.Random(0)
        every_s = min(KILL_EVERY_S, self.seconds / 5)
        while time.perf_counter() + every_s < self._began + (1 - CALM_SHARE) * self.seconds:
            await asyncio.sleep(every_s)
            if pids := [pid for pid in _children(_gateway_pid()) if "backends" in _command(pid)]:
                pid = rng.choice(pids)
                os.kill(pid, signal.SIGKILL)
                self.counts["kills"] += 1
                progress(f"{time.perf_counter() - self._began:5.0f} s: killed worker {pid}; {dict(self.counts)}")

    async def _sample(self) -> None:
        while True:
            self.rss.append((time.perf_counter() - self._began, _rss_mb(_gateway_pid())))
            await asyncio.sleep(_SAMPLE_EVERY_S)

    async def idle(self) -> None:
        """Wait until nothing runs and all workers are up. Raises TimeoutError."""
        async with asyncio.timeout(_IDLE_S):
            while True:
                metrics = await self.metrics()
                running = sum(value for name, value in metrics.items() if name.startswith("vllm:num_requests_running"))
                up = sum(value for name, value in metrics.items() if name.startswith("headway_worker_up"))
                if not running and up == len(MODELS):
                    break
                await asyncio.sleep(0.5)
        await asyncio.sleep(2.0)  # an idle worker's last report is at most a second old

    async def metrics(self) -> dict[str, float]:
        async with self.http.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}

    async def ties(self) -> int:
        """Remove answers from `wrong` that diverge between two tokens of almost equal probability, and return their number."""
        wrong, self.wrong = self.wrong, []
        for response in wrong:
            if not await self._is_tie(response):
                self.wrong.append(response)
        return len(wrong) - len(self.wrong)

    async def _is_tie(self, wrong: Wrong) -> bool:
        item = self.items[wrong.item]
        messages: list[dict[str, Any]] = [{"role": "system", "content": f"Case soak {wrong.item}."}]
        for turn in range(wrong.turn + 1):
            messages.append({"role": "user", "content": item.texts[turn]})
            if turn < wrong.turn:
                messages.append({"role": "assistant", "content": self.expected[wrong.item, wrong.model][turn]})
        body = {
            "model": wrong.model, "messages": messages, "max_tokens": item.output_tokens, "temperature": 0, "ignore_eos": True,
            "logprobs": True, "top_logprobs": 2,
        }  # fmt: skip
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers={"x-headway-run-id": "tie"}) as answer:
            tokens = (await answer.json())["choices"][0]["logprobs"]["content"]
        pairs = enumerate(zip(wrong.expected, wrong.got, strict=False))
        same = next((place for place, (a, b) in pairs if a != b), min(len(wrong.expected), len(wrong.got)))
        length = 0
        for token in tokens:
            length += len(token["token"])
            if length > same:
                first, second = token["top_logprobs"][:2]
                return bool(first["logprob"] - second["logprob"] <= TIE)
        return False


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, help="of traffic (2; 0.3 with --quick)")
    args = parser.parse_args()
    minutes = args.minutes or (0.3 if args.quick else 2.0)
    items = pool(trace_of(args.data), 10 if args.quick else 40, seed=4)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.sqlite"
        with gateway(POLICY, {"HEADWAY_LEDGER": str(ledger), "HEADWAY_LOG_LEVEL": "CRITICAL"}) as url:
            soak, metrics, ties = uvloop.run(_soak(url, items, 60 * minutes))
        rows = _rows(ledger)
    results, targets = _judged(soak, metrics, rows, ties, minutes)
    print(table(("what", "times"), sorted(soak.counts.items())))
    for wrong in soak.wrong[:5]:
        progress(f"wrong: {wrong}")
    finish("soak", results, targets)


async def _soak(url: str, items: Sequence[Item], seconds: float) -> tuple[Soak, dict[str, float], int]:
    async with open_session(_TIMEOUT_S) as http:
        soak = Soak(http, url, items, seconds)
        await soak.learn()
        await soak.run()
        ties = await soak.ties()
        await soak.idle()
        return soak, await soak.metrics(), ties


class Rows(NamedTuple):
    """Rows of the ledger: counts by run, all tokens, and the number of duplicate ids."""

    by_run: dict[str, int]
    tokens: int
    doubles: int


def _rows(ledger: Path) -> Rows:
    connection = sqlite3.connect(ledger)
    try:
        by_run = dict(connection.execute("SELECT run, count(*) FROM requests GROUP BY run"))
        (tokens,) = connection.execute("SELECT sum(prompt_tokens + output_tokens) FROM requests").fetchone()
        doubled = "SELECT count(*) FROM (SELECT 1 FROM requests WHERE request <> '' GROUP BY request HAVING count(*) > 1)"
        (doubles,) = connection.execute(doubled).fetchone()
    finally:
        connection.close()
    return Rows(by_run, tokens or 0, doubles)


def _judged(
    soak: Soak, metrics: dict[str, float], rows: Rows, ties: int, minutes: float
) -> tuple[dict[str, Any], list[Target]]:
    used = [value for name, value in metrics.items() if name.startswith("headway_worker_pages{") and 'state="used"' in name]
    # Clients that disconnected may have left before the gateway saw the request.
    missing = sum(rows.by_run.get(run, 0) != count for run, count in soak.sent.items() if run not in soak.left)
    settled = metrics["headway_budget_settled_tokens_total"]
    unexpected = sum(count for name, count in soak.counts.items() if name.startswith("unexpected"))
    unbalanced = abs(settled - rows.tokens)
    slope = _slope([(at / 60, mb) for at, mb in soak.rss if at >= WARM_SHARE * soak.seconds])
    results = {
        "minutes": minutes,
        "outcomes": dict(soak.counts),
        "ties": ties,
        "wrong_answers": len(soak.wrong),
        "unexpected_errors": unexpected,
        "leaked_pages": sum(used),
        "budget_holds": metrics["headway_budget_reservations"],
        "budget_tokens": settled,
        "ledger_tokens": rows.tokens,
        "ledger_doubles": rows.doubles,
        "runs_not_once_in_ledger": missing,
        "rss_mb": soak.rss[-1][1] if soak.rss else 0.0,
        "rss_slope_mb_per_min": slope,
    }
    targets = [
        Target("right_answers", soak.counts["right"], ">=", 1),
        Target("kills", soak.counts["kills"], ">=", 1),
        Target("wrong_answers", len(soak.wrong), "<=", 0),
        Target("unexpected_errors", unexpected, "<=", 0),
        Target("leaked_pages", sum(used), "<=", 0),
        Target("budget_holds", metrics["headway_budget_reservations"], "<=", 0),
        Target("budget_tokens_off", unbalanced, "<=", 0),
        Target("ledger_doubles", rows.doubles, "<=", 0),
        Target("runs_not_once_in_ledger", missing, "<=", 0),
    ]
    if minutes >= 10:
        targets.append(Target("rss_slope_mb_per_min", slope, "<=", 1.0))
    return results, targets


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope by least squares."""
    if len(points) < 2:
        return 0.0
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _gateway_pid() -> int:
    """Return the id of the gateway that this process started."""
    return next(pid for pid in _children(os.getpid()) if "gateway.cli" in _command(pid))


def _children(pid: int) -> list[int]:
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        pids += map(int, task.read_text().split())
    return pids


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
