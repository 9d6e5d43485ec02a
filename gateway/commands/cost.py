"""`headway cost`: reports dollars from the ledger's file, also while a gateway writes to it."""

import sqlite3
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.commands.format_table import columns
from gateway.ledger.focus import write_focus
from gateway.ledger.ledger import open_reader
from gateway.ledger.scope import Scope
from gateway.ledger.spending import By, Idle, Spending, idle, spending
from gateway.ledger.store import select

_HEADER = ("requests", "prompt", "cached", "output", "device s", "$", "saved by cache $", "all on large $")


def cost(arguments: Namespace, env: Mapping[str, str]) -> int:
    file = arguments.ledger or env.get("HEADWAY_LEDGER", "")
    if not file:
        print("headway: no ledger: name it with --ledger FILE or HEADWAY_LEDGER", file=sys.stderr)
        return 1
    until = time.time()
    scope = Scope(arguments.tenant, until - 86_400 * arguments.days, until)
    try:
        lines, stood = _read(Path(file), scope, arguments.by)
    except sqlite3.Error as error:
        print(f"{file} cannot be read as a ledger: {error}", file=sys.stderr)
        return 1
    if arguments.csv:
        write_focus(sys.stdout, lines, stood, scope, arguments.by)
    else:
        print(_table(lines, stood, arguments.by) if lines else "nothing was charged in this period")
    return 0


def _read(file: Path, scope: Scope, by: By) -> tuple[list[Spending], list[Idle]]:
    """Read spending and idle time. Idle time belongs to no tenant, so it is not read for a single one."""
    connection = open_reader(file)
    try:

        def read(query: str, values: Sequence[str | int | float]) -> list[dict[str, object]]:
            return select(connection, query, values)

        return spending(read, scope, by, limit=1_000_000), [] if scope.tenant else idle(read, scope)
    finally:
        connection.close()


def _table(lines: Sequence[Spending], stood: Sequence[Idle], by: By) -> str:
    names = (by, "tenant") if by == "run" else (by,)
    rows: list[Sequence[str]] = [(*names, *_HEADER)]
    for line in lines:
        rows.append((line.key or "(turned away)", *((line.tenant,) if by == "run" else ()), *_figures(line)))
    rows.append(("sum", *("",) * (len(names) - 1), *_sums(lines)))
    text = columns(rows, right=frozenset(range(len(names), len(names) + len(_HEADER))))
    if not stood:
        return text
    seconds, usd = sum(idle.idle_s for idle in stood), sum(idle.idle_usd for idle in stood)
    return f"{text}\n\nidle: {seconds:,.1f} s of {len(stood)} workers, ${usd:.8f}"


def _figures(line: Spending) -> tuple[str, ...]:
    tokens = (line.requests, line.prompt_tokens, line.cached_tokens, line.output_tokens)
    dollars = (line.usd, line.saved_usd, line.all_large_usd)
    return (*(f"{n:,}" for n in tokens), f"{line.device_s:,.3f}", *(f"{usd:.8f}" for usd in dollars))


def _sums(lines: Sequence[Spending]) -> tuple[str, ...]:
    whole = Spending(
        key="",
        tenant="",
        first_at=0.0,
        last_at=0.0,
        **{
            name: sum(getattr(line, name) for line in lines)
            for name in Spending.__struct_fields__
            if name not in ("key", "tenant", "first_at", "last_at")
        },
    )
    return _figures(whole)
