"""`headway runs [ID]`: the live runs of a running gateway, and the request field that identified each."""

import sys
import urllib.error
import urllib.parse
import urllib.request
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.commands.format_table import columns
from gateway.policy.load import PolicyError, load_policy

_TIMEOUT_S = 10.0
_HEADER = ("run", "source", "turns", "chains", "prompt", "cached", "output", "device s", "µ$", "saved µ$")


class _Run(msgspec.Struct, kw_only=True):
    """Displayed fields of `GET /v1/headway/runs`; others are ignored."""

    id: str
    source: str
    turns: int
    chains: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    device_s: float
    cost_usd: float
    saved_usd: float


class _Runs(msgspec.Struct, kw_only=True):
    runs: list[_Run]


def runs(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        body = _ask(arguments, env)
        text = body.decode() if arguments.id else runs_text(msgspec.json.decode(body, type=_Runs).runs)
    except urllib.error.HTTPError as error:
        print(f"the gateway answered {error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except (OSError, PolicyError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 0


def runs_text(runs: list[_Run]) -> str:
    """Return a table. Dollars are in millionths."""
    if not runs:
        return "no run is live"
    rows = [
        (
            *(run.id, run.source, f"{run.turns:,}", f"{run.chains:,}"),
            *(f"{run.prompt_tokens:,}", f"{run.cached_tokens:,}", f"{run.output_tokens:,}"),
            *(f"{run.device_s:.3f}", f"{1e6 * run.cost_usd:,.1f}", f"{1e6 * run.saved_usd:,.1f}"),
        )
        for run in runs
    ]
    return columns([_HEADER, *rows], right=frozenset(range(2, len(_HEADER))))


def _ask(arguments: Namespace, env: Mapping[str, str]) -> bytes:
    key = env.get("HEADWAY_API_KEY", "")
    url = arguments.url
    if not url:
        listen = load_policy(Path(arguments.policy), env).listen
        url = f"http://{listen.host}:{listen.port}"
    name = f"/{urllib.parse.quote(arguments.id)}" if arguments.id else ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/headway/runs{name}", headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        body: bytes = answer.read()
    return body
