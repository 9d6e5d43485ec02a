"""`headway policy check FILE ...`, `diff OLD NEW`, `replay NEW --ledger FILE`, `schema` and `reference`."""

import json
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from gateway.commands.format_table import columns
from gateway.policy.diff import diff_policies, policy_hash
from gateway.policy.load import PolicyError, load_policy, missing_files, policy_json_schema
from gateway.policy.reference import config_page
from gateway.routing.decision import Decision
from gateway.routing.replay import Recorded, Replayed, Side, replay


def check(arguments: Namespace, env: Mapping[str, str]) -> int:
    """Print every problem of every file to stderr. Returns 1 if there is any."""
    failed = False
    for file in arguments.files:
        try:
            policy = load_policy(Path(file), env)
        except PolicyError as error:
            failed = True
            number = len(error.problems)
            print(f"{error}\n{file}: {number} problem{'s' * (number != 1)}", file=sys.stderr)
            continue
        for path in missing_files(policy):
            print(f"{file}: note: {path} does not exist yet", file=sys.stderr)
        counts = [f"{len(getattr(policy, part))} {part}" for part in ("tiers", "models", "workers", "routes")]
        print(f"{file}: valid ({', '.join(counts)})")
    return int(failed)


def diff(arguments: Namespace, env: Mapping[str, str]) -> int:
    """Print a line for each value that differs. Returns 1 if there is any, like `diff`, and 2 if a file is invalid."""
    try:
        old, new = (load_policy(Path(file), env) for file in (arguments.old, arguments.new))
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    changes = diff_policies(old, new)
    print(f"{arguments.old} {policy_hash(old)}\n{arguments.new} {policy_hash(new)}")
    for change in changes:
        print(change)
    return int(bool(changes))


def replay_command(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        old, new = (load_policy(Path(file), env) for file in (arguments.policy, arguments.new))
        recorded = list(_recorded(Path(arguments.ledger)))
    except (PolicyError, OSError, sqlite3.Error, msgspec.DecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    if not recorded:
        print(f"{arguments.ledger}: no decisions are recorded", file=sys.stderr)
        return 1
    print(_replay_text(replay(recorded, new, old)))
    return 0


def schema(arguments: Namespace, env: Mapping[str, str]) -> int:
    print(json.dumps(policy_json_schema(), indent=2))
    return 0


def reference(arguments: Namespace, env: Mapping[str, str]) -> int:
    print(config_page(), end="")
    return 0


def _recorded(ledger: Path) -> Iterator[Recorded]:
    """Yield the recorded decisions in chronological order."""
    if not ledger.exists():
        raise FileNotFoundError(f"{ledger}: there is no such ledger")
    decoder = msgspec.json.Decoder(Decision)
    query = (
        "SELECT d.body, r.tenant, r.run, r.asked FROM decisions d JOIN requests r ON r.decision = d.id "
        "GROUP BY d.id ORDER BY d.at, d.id"
    )
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        for body, tenant, run, asked in connection.execute(query):
            yield Recorded(decoder.decode(body), tenant, run, asked)


def _replay_text(replayed: Replayed) -> str:
    before, after, moved = replayed
    rows = [("", "recorded", "replayed")]
    for tier in sorted({*before.tiers, *after.tiers}):
        rows.append((f"to {tier}", _part(before, before.tiers[tier]), _part(after, after.tiers[tier])))
    for route in sorted({*before.routes, *after.routes}):
        rows.append((f"by route {route}", _part(before, before.routes[route]), _part(after, after.routes[route])))
    rows += [
        ("expected µ$", f"{before.usd * 1e6:,.3f}", f"{after.usd * 1e6:,.3f}"),
        ("mean quality", _mean_quality(before), _mean_quality(after)),
        ("expected on time", _on_time(before), _on_time(after)),
        ("refused", f"{before.refused:,}", f"{after.refused:,}"),
    ]
    total = before.decided
    return f"{columns(rows, right=frozenset((1, 2)))}\n{moved:,} of {total:,} requests go to another worker"


def _mean_quality(side: Side) -> str:
    return f"{side.quality / max(1, side.judged):.4f}"


def _on_time(side: Side) -> str:
    return f"{side.on_time / max(1, side.decided):.2%}"


def _part(side: Side, count: int) -> str:
    return f"{count:,} ({count / max(1, side.decided):.1%})"
