"""Claim: one decision per request, with accounting, metrics and spans, costs a gateway process little.

Method: `wrk` with 16 connections and one thread against one process at a time. Bodies are short; answers have 64 tokens, whole
and streamed frame by frame. Headway runs with default settings and gets answers from a fake worker on the real link. Two peers
use the same canned upstream: LiteLLM's proxy (own virtual environment, one worker, its documented production settings) and a
do-nothing Litestar proxy on the same server. The contenders alternate within one run; medians of the rounds.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from benchmarks.served import default_policy, free_port, gateway, wait_ready

CONNECTIONS = 16
_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer sk-benchmark"
wrk.body = '{body}'
"""
BODY = (
    '{{"model":"{model}","stream":{stream},"max_tokens":64,'
    '"messages":[{{"role":"user","content":"What is 47 plus 8, and why?"}}]}}'
)


class Contender(NamedTuple):
    name: str
    url: str
    model: str


class Load(NamedTuple):
    """Result of one `wrk` run. `errors` are answers other than 2xx and broken connections."""

    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--litellm-venv", type=Path, default=ROOT / ".venv" / "litellm", help="made when it is not there")
    parser.add_argument("--without-litellm", action="store_true")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: on Debian, `apt-get install wrk`")
    rounds, seconds = (1, 3) if args.quick else (3, 10)
    with ExitStack() as stack:
        upstream = stack.enter_context(_server(["-m", "benchmarks.mock_upstream", "{port}"], ready="/"))
        contenders = [Contender("headway", stack.enter_context(_headway()), "auto")]
        proxy = stack.enter_context(_server(["-m", "benchmarks.passthrough", "{port}", upstream], ready="/readyz"))
        contenders.append(Contender("passthrough", proxy, "mock"))
        if not args.without_litellm:
            contenders.append(Contender("litellm", stack.enter_context(_litellm(args.litellm_venv, upstream)), "mock"))
        loads = _measure(contenders, rounds, seconds)
    rows = [(kind, name, *load) for (kind, name), load in loads.items()]
    print(table(("answer", "contender", "requests/s", "p50 ms", "p99 ms", "errors"), rows))
    results: dict[str, float] = {}
    for kind in ("", "stream_"):
        ours = loads[kind or "whole_", "headway"]
        results |= {f"{kind}rps": ours.rps, f"{kind}p50_ms": ours.p50_ms, f"{kind}p99_ms": ours.p99_ms}
        for peer in contenders[1:]:
            rps = loads[kind or "whole_", peer.name].rps
            results |= {f"{kind}rps_{peer.name}": rps, f"{kind}ratio_{peer.name}": ours.rps / rps}
    results["errors"] = sum(load.errors for load in loads.values())
    wanted = {"litellm": 10.0, "passthrough": 0.2}
    targets = [
        Target(f"{kind}ratio_{peer.name}", results[f"{kind}ratio_{peer.name}"], ">=", wanted[peer.name])
        for kind in ("", "stream_")
        for peer in contenders[1:]
    ]
    finish("overhead", results, targets)


def _measure(contenders: list[Contender], rounds: int, seconds: int) -> dict[tuple[str, str], Load]:
    seen: dict[tuple[str, str], list[Load]] = {}
    for number in range(rounds):
        for kind in ("whole_", "stream_"):
            for contender in contenders:
                body = BODY.format(model=contender.model, stream="true" if kind == "stream_" else "false")
                if number == 0:
                    wrk(contender.url, body, 2)
                load = wrk(contender.url, body, seconds)
                seen.setdefault((kind, contender.name), []).append(load)
                progress(
                    f"round {number + 1}/{rounds} {kind}{contender.name}: {load.rps:,.0f} requests/s, {load.errors} errors"
                )
    return {key: median(loads) for key, loads in seen.items()}


def median(loads: list[Load]) -> Load:
    rps, p50, p99 = (statistics.median(values) for values in list(zip(*loads, strict=True))[:3])
    return Load(rps, p50, p99, sum(load.errors for load in loads))


def wrk(url: str, body: str, seconds: int) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.replace("{body}", body))
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}s",
            "--latency",
            "-s",
            script.name,
            f"{url}/v1/chat/completions",
        ]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rps = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", out))
    errors += sum(int(n) for line in re.findall(r"Socket errors: (.*)", out) for n in re.findall(r"\d+", line))
    return Load(rps, _milliseconds(out, "50%"), _milliseconds(out, "99%"), errors)


def _milliseconds(out: str, percentile: str) -> float:
    number, unit = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", out).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


@contextmanager
def _server(
    arguments: list[str], *, ready: str, python: str = sys.executable, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    port = free_port()
    command = [python, *(argument.replace("{port}", str(port)) for argument in arguments)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(environment), stdout=subprocess.DEVNULL) as process:
        try:
            wait_ready(f"http://127.0.0.1:{port}{ready}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def _headway() -> Iterator[str]:
    """Serve the default policy's decision between two fake models, on workers reached by URL."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        zoo = ROOT / "backends" / "zoo"
        workers = []
        for name in ("pico", "nano"):
            socket = Path(folder) / f"{name}.sock"
            command = [
                "-m",
                "tests.fake_worker",
                "--listen",
                f"unix://{socket}",
                "--model-dir",
                str(zoo / name),
                "--model",
                name,
            ]
            process = stack.enter_context(subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL))
            stack.callback(process.terminate)
            workers.append(f"  {name}-0: {{model: {name}, device: cpu, url: 'unix://{socket}'}}")
        text = re.sub(r"workers:\n(  .*\n)+", "workers:\n" + "\n".join(workers) + "\n", default_policy())
        policy = Path(folder) / "policy.yaml"
        policy.write_text(text)
        environment = {"HEADWAY_SPANS": f"file:{folder}/spans.jsonl", "HEADWAY_LEDGER": f"{folder}/ledger.sqlite"}
        yield stack.enter_context(gateway(policy, environment))


@contextmanager
def _litellm(venv: Path, upstream: str) -> Iterator[str]:
    if not (venv / "bin" / "litellm").exists():
        progress(f"installing LiteLLM's proxy into {venv}")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "-q", "litellm[proxy]"], check=True, stdout=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "litellm.yaml"
        template = (Path(__file__).parent / "litellm_peer.yaml").read_text()
        config.write_text(template.replace("{port}", upstream.rsplit(":", 1)[1]))
        command = [
            str(venv / "bin" / "litellm"),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--num_workers",
            "1",
        ]
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        python = str(venv / "bin" / "python")
        with _server(command, ready="/health/liveliness", python=python, environment=offline) as url:
            yield url


if __name__ == "__main__":
    main()
