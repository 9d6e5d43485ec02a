"""Bounds the share of one tenant in the rows of a training. Pure and deterministic."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from gateway.training.outcome import Outcome


def capped(rows: Sequence[Outcome], share: float) -> list[Outcome]:
    """Return rows of which each tenant has at most `share`, in their order. Rows without a tenant are the operator's: all stay.

    With too few tenants for the share, all have as many rows as the smallest. A single one without other rows keeps its own:
    there are no others whose estimates it could move.
    """
    by_tenant: dict[str, list[Outcome]] = defaultdict(list)
    for row in rows:
        by_tenant[row.tenant].append(row)
    num_trusted = len(by_tenant.pop("", ()))
    if len(by_tenant) + bool(num_trusted) < 2:
        return list(rows)
    most = _most([len(own) for own in by_tenant.values()], num_trusted, share)
    kept = {id(row) for own in by_tenant.values() for row in sorted(own, key=_order)[:most]}
    return [row for row in rows if not row.tenant or id(row) in kept]


def _most(sizes: Sequence[int], num_trusted: int, share: float) -> int:
    """Return the largest number of rows of a tenant that is at most `share` of all rows that then remain."""
    most = max(sizes)
    least = 0 if num_trusted else min(sizes)
    while most > least and most > share * (num_trusted + sum(min(size, most) for size in sizes)):
        most -= 1
    return most


def _order(row: Outcome) -> bytes:
    """Return a hash of the row, so that the rows that stay do not depend on their time."""
    return hashlib.blake2b(msgspec.json.encode(row, order="sorted"), digest_size=16).digest()
