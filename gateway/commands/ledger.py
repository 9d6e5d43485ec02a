"""`headway ledger check`: compares the counters of a running gateway with the rows of its ledger since its start."""

import sqlite3
import sys
import time
import urllib.request
from argparse import Namespace
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from gateway.commands.format_table import columns
from gateway.ledger.ledger import open_reader
from gateway.policy.load import PolicyError, load_policy

_TIMEOUT_S = 10.0
_TRIES, _PAUSE_S = 4, 0.5
"""Rows are written in batches, within half a second under load: a difference is looked at again."""
_START = "headway_start_time_seconds"
_SUMS = {
    "headway_requests_total": "count(*)",
    "headway_prompt_tokens_total": "sum(prompt_tokens)",
    "headway_cached_tokens_total": "sum(cached_tokens)",
    "headway_output_tokens_total": "sum(output_tokens)",
    "headway_cost_usd_total": "sum(usd)",
}
_QUERY = f"SELECT {', '.join(f'coalesce({sql}, 0)' for sql in _SUMS.values())} FROM requests WHERE at >= ?"
_ROUNDING = 1e-9
"""Share by which sums of the same dollars in another order may differ."""


class Compared(NamedTuple):
    """A counter of the gateway and the sum over the ledger's rows."""

    counter: str
    counted: float
    written: float

    @property
    def is_equal(self) -> bool:
        return abs(self.counted - self.written) <= _ROUNDING * max(1.0, abs(self.counted))


def check(arguments: Namespace, env: Mapping[str, str]) -> int:
    file = arguments.ledger or env.get("HEADWAY_LEDGER", "")
    if not file:
        print("headway: no ledger: name it with --ledger FILE or HEADWAY_LEDGER", file=sys.stderr)
        return 1
    try:
        compared = _compared_again(_url(arguments, env), Path(file))
    except (OSError, sqlite3.Error, PolicyError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    rows = [
        (one.counter, f"{one.counted:,.10g}", f"{one.written:,.10g}", "" if one.is_equal else "differs") for one in compared
    ]
    print(columns([("counter", "gateway", "ledger", ""), *rows], right=frozenset((1, 2))))
    return 0 if all(one.is_equal for one in compared) else 1


def _compared_again(url: str, ledger: Path) -> list[Compared]:
    for number in range(_TRIES):
        compared = compare(_metrics(url), ledger)
        if all(one.is_equal for one in compared):
            break
        if number < _TRIES - 1:
            time.sleep(_PAUSE_S)
    return compared


def compare(metrics: str, ledger: Path) -> list[Compared]:
    """Compare counters in Prometheus text format with a ledger's rows. Raises ValueError or sqlite3.Error."""
    sums = dict.fromkeys((*_SUMS, _START), 0.0)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    if not sums[_START]:
        raise ValueError(f"there is no {_START}: is this a gateway of the same version?")
    with closing(open_reader(ledger)) as connection:
        written = connection.execute(_QUERY, (sums[_START],)).fetchone()
    return [Compared(name, sums[name], value) for name, value in zip(_SUMS, written, strict=True)]


def _url(arguments: Namespace, env: Mapping[str, str]) -> str:
    if arguments.url:
        return str(arguments.url).rstrip("/")
    listen = load_policy(Path(arguments.policy), env).listen
    return f"http://{listen.host}:{listen.port}"


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as answer:
        body: bytes = answer.read()
    return body.decode()
