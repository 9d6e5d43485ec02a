"""Claim: full telemetry costs little: spans of every request, metrics and the ledger leave a gateway 65 % of its throughput
against a fake worker, and 97 % against a real one. A request has as many spans for a thousand tokens as for two.

Method: `wrk` with 16 connections against one gateway process at a time. On: the default settings, every request's spans to a
file, the ledger in SQLite. Off: the same program without spans, ledger rows and metric updates (benchmarks/tracing_off.py). Two
identical processes differ by a tenth from one start to the next, and as much from one minute to the next, because generator,
gateway and worker share two cores. So on and off alternate within seconds, each the first in every second round, and all are
restarted a few times. The ratio is the geometric mean of the rounds' own. pico gets requests for ANSWER tokens, where it is the
bottleneck. It also gets requests that it answers in a few tokens, where it is as fast as the fake one and this too is the
gateway's throughput. Then short and long answers, and the spans of each are counted.
"""

import asyncio
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.client import ask
from benchmarks.overhead import BODY, Load, median, wrk
from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.served import default_policy, free_port, gateway, wait_ready

KINDS, TELEMETRY = ("fake", "pico"), ("on", "off")
ANSWER = 64
LOADS = (("fake", 0), ("pico", 0), ("pico", ANSWER))
"""The worker, and the required tokens of an answer; 0 leaves the length to the model."""
SHORT, LONG = 2, 1000


def main() -> None:
    args = arguments(__doc__).parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: on Debian, `apt-get install wrk`")
    starts, rounds, seconds = (1, 1, 3) if args.quick else (4, 4, 4)
    seen: dict[tuple[str, int, str], list[Load]] = {}
    spans: dict[str, int] = {}
    for start in range(starts):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            urls = {
                (kind, telemetry): stack.enter_context(_gateway(folder, kind, telemetry=telemetry))
                for kind in KINDS
                for telemetry in TELEMETRY
            }
            for number, (kind, tokens) in itertools.product(range(rounds), LOADS):
                body = BODY.format(model="pico", stream="true")
                if tokens:
                    body = body.replace("{", '{"ignore_eos":true,', 1).replace("64", str(tokens))
                for telemetry in TELEMETRY if number % 2 else reversed(TELEMETRY):
                    if number == 0:
                        wrk(urls[kind, telemetry], body, 2)
                    load = wrk(urls[kind, telemetry], body, seconds)
                    seen.setdefault((kind, tokens, telemetry), []).append(load)
                    progress(
                        f"start {start + 1}/{starts}, round {number + 1}/{rounds}, {kind} {tokens or ''} {telemetry}:"
                        f" {load.rps:,.0f} requests/s, {load.errors} errors"
                    )
            if start == 0:
                spans = asyncio.run(_spans(urls["fake", "on"], folder / "fake-on.jsonl"))
    loads = {key: median(found) for key, found in seen.items()}
    print(
        table(
            ("worker", "tokens asked for", "telling", "requests/s", "p50 ms", "p99 ms", "errors"),
            [(kind, tokens or "-", telemetry, *load) for (kind, tokens, telemetry), load in loads.items()],
        )
    )
    names = {load: f"{load[0]}_{load[1]}_tokens" if load[1] else load[0] for load in LOADS}
    apart = {load: [on.rps / off.rps for on, off in zip(seen[*load, "on"], seen[*load, "off"], strict=True)] for load in LOADS}
    ratios = {names[load]: statistics.geometric_mean(found) for load, found in apart.items()}
    results: dict[str, Any] = {
        f"{names[kind, tokens]}_{telemetry}_rps": load.rps for (kind, tokens, telemetry), load in loads.items()
    } | {"spans": spans}
    results |= {f"{name}_ratio": ratio for name, ratio in ratios.items()}
    results |= {f"{names[load]}_ratios": sorted(found) for load, found in apart.items()}
    results["errors"] = sum(load.errors for load in loads.values())
    targets = [
        Target("on over off, fake worker", ratios["fake"], ">=", 0.65),
        Target("on over off, pico", ratios["pico"], ">=", 0.97),
        Target(f"on over off, pico, answers of {ANSWER} tokens", ratios[names["pico", ANSWER]], ">=", 0.97),
        Target("more spans for 1,000 tokens than for 2", spans["long"] - spans["short"], "<=", 0),
    ]
    finish("tracing", results, targets)


@contextmanager
def _gateway(folder: Path, kind: str, *, telemetry: str) -> Iterator[str]:
    policy = folder / f"{kind}-{telemetry}.yaml"
    with ExitStack() as stack:
        workers = stack.enter_context(_fake(folder, telemetry)) if kind == "fake" else "  pico-0: {model: pico, device: cpu}\n"
        policy.write_text(re.sub(r"workers:\n(  .*\n)+", f"workers:\n{workers}", default_policy()))
        if telemetry == "on":
            spans, ledger = folder / f"{kind}-on.jsonl", folder / f"{kind}.sqlite"
            environment = {"HEADWAY_SPANS": f"file:{spans}", "HEADWAY_LEDGER": str(ledger)}
            yield stack.enter_context(gateway(policy, environment))
        else:
            yield stack.enter_context(_without_telemetry(policy))


@contextmanager
def _fake(folder: Path, telemetry: str) -> Iterator[str]:
    socket = folder / f"{telemetry}.sock"
    command = [sys.executable, "-m", "tests.fake_worker", "--listen", f"unix://{socket}", "--model", "pico"]
    command += ["--model-dir", str(ROOT / "backends" / "zoo" / "pico")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"  pico-0: {{model: pico, device: cpu, url: 'unix://{socket}'}}\n"
        finally:
            process.terminate()


@contextmanager
def _without_telemetry(policy: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.tracing_off", str(policy)]
    with subprocess.Popen(command, cwd=ROOT, env={"HEADWAY_PORT": str(port)}) as process:
        try:
            wait_ready(f"http://127.0.0.1:{port}/readyz", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def _spans(url: str, file: Path) -> dict[str, int]:
    """Return the number of spans of a short and of a long answer."""
    counts = {}
    async with aiohttp.ClientSession() as http:
        for number, (name, tokens) in enumerate((("short", SHORT), ("long", LONG)), 1):
            trace = f"{number:032x}"
            headers = {"traceparent": f"00-{trace}-{1:016x}-01"}
            body = {"model": "pico", "max_tokens": tokens, "messages": [{"role": "user", "content": "Count."}]}
            await ask(http, url, body, headers)
            counts[name] = await _count(file, trace)
    return counts


async def _count(file: Path, trace: str) -> int:
    """Return the spans of a trace. Spans are written in batches, at the latest after five seconds."""
    for _ in range(100):
        await asyncio.sleep(0.1)
        lines = file.read_bytes().splitlines()  # noqa: ASYNC240  nothing else runs here
        found = Counter(json.loads(line)["trace_id"] for line in lines if trace.encode() in line)
        if found[trace]:
            return found[trace]
    raise RuntimeError(f"no spans of trace {trace} after 10 s")


if __name__ == "__main__":
    main()
