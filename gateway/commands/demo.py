"""`headway demo`: starts a gateway, runs an agent through it, prints decisions and dollars, and keeps serving."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.commands.agent import RUNS, Turn, play
from gateway.commands.format_table import columns
from gateway.policy.load import load_policy
from gateway.settings import read_settings

_START_S = 300.0


def demo(arguments: Namespace, env: Mapping[str, str]) -> int:
    """Run the demonstration. Returns 0 if every answer was right (with --exit: at once; else after Ctrl-C)."""
    try:
        import openai
    except ModuleNotFoundError:
        print("headway: the demonstration needs the openai client: pip install 'headway[demo]'", file=sys.stderr)
        return 1
    listen, settings = load_policy(Path(arguments.policy), env).listen, read_settings(env)
    url = f"http://{settings.host or listen.host}:{settings.port or listen.port}"
    command = [sys.executable, "-m", "gateway.cli", "serve", "--policy", arguments.policy]
    with subprocess.Popen(command, env=dict(env)) as server:
        try:
            _wait_ready(url, server)
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                turns = _run_agent(client)
            right = _show(turns, url)
            if not arguments.exit:
                _keep_serving(server)
        except RuntimeError as problem:
            print(f"headway: {problem}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            pass
        finally:
            _stop(server)
    return 0 if right else 1


def _wait_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("the gateway did not start: see its message above")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the gateway was not ready after {_START_S:.0f} s")


def _run_agent(client: object) -> list[Turn]:
    turns: list[Turn] = []
    for run in RUNS:
        print(f"headway: agent run {run.name}", file=sys.stderr, flush=True)
        turns += play(client, run)  # type: ignore[arg-type]
    return turns


def _show(turns: Sequence[Turn], url: str) -> bool:
    header = ("run", "asked", "answer", "model", "why", "prompt", "cached", "ms", "µ$", "on large", "")
    rows = [_row(turn) for turn in turns]
    prompt, cached = sum(t.prompt_tokens for t in turns), sum(t.cached_tokens for t in turns)
    usd, large = sum(t.usage["cost_usd"] for t in turns), sum(t.usage["counterfactual_usd"] for t in turns)
    seconds = sum(t.seconds for t in turns)
    wrong = sum(t.right is False for t in turns)
    verdict = "all right" if not wrong else f"{wrong} wrong"
    rows.append(
        ("total", "", "", "", "", f"{prompt:,}", f"{cached:,}", f"{1000 * seconds:,.0f}", _micro(usd), _micro(large), verdict)
    )
    print(columns([header, *rows], right=frozenset(range(5, 10))))
    print(f"\nOne decision a turn. This program cost ${usd:.8f}; all of it on the large tier would have cost ${large:.8f}.")
    print(f"\nServing at {url}. Try:\n")
    print(f"""  curl -s {url}/v1/chat/completions -H 'content-type: application/json' -D - \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "What is 386 + 457?"}}]}}'\n""")
    return not wrong


def _row(turn: Turn) -> tuple[str, ...]:
    usage = turn.usage
    mark = {True: "right", False: "WRONG", None: ""}[turn.right]
    numbers = (f"{turn.prompt_tokens:,}", f"{turn.cached_tokens:,}", f"{1000 * turn.seconds:,.0f}")
    costs = (_micro(usage["cost_usd"]), _micro(usage["counterfactual_usd"]))
    return (turn.run, _short(turn.asked), _short(turn.answer), usage["model"], usage["reason"], *numbers, *costs, mark)


def _micro(usd: float) -> str:
    return f"{1e6 * usd:.3f}"


def _short(text: str, width: int = 38) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _keep_serving(server: "subprocess.Popen[bytes]") -> None:
    print("Ctrl-C stops it.", flush=True)
    server.wait()
    raise RuntimeError(f"the gateway ended with {server.returncode}")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
