"""What changed between two policies, and the name of one: secrets are shown as digests, here and in every log."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gateway.policy.schema import Policy

_SECRET = ("keys", "key", "token", "api_key")
"""The policy's own `keys` are hashes, names and limits."""
_NAMED = ("routes",)
"""Lists whose items go by their name, so that an item put before them changes nothing else."""


class Change(NamedTuple):
    """`before` or `after` is None where there was or is no such value. Values are JSON."""

    path: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {self.after}"
        if self.after is None:
            return f"- {self.path}: {self.before}"
        return f"~ {self.path}: {self.before} -> {self.after}"


def policy_hash(policy: Policy) -> str:
    """Equal for policies that decide alike, whatever their files look like."""
    flat = dict(_flat(msgspec.to_builtins(policy), "", secret=False))
    return f"blake2b-16:{hashlib.blake2b(msgspec.json.encode(flat, order='sorted'), digest_size=16).hexdigest()}"


def diff_policies(old: Policy, new: Policy) -> list[Change]:
    """By path, in the order of the new policy; what is gone comes last. The order of routes counts as a value."""
    before = dict(_flat(msgspec.to_builtins(old), "", secret=False))
    after = dict(_flat(msgspec.to_builtins(new), "", secret=False))
    changes = [Change(path, before.get(path), value) for path, value in after.items() if before.get(path) != value]
    return changes + [Change(path, value, None) for path, value in before.items() if path not in after]


def _flat(value: Any, path: str, *, secret: bool) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name, secret=secret or (bool(path) and name in _SECRET))
    elif path in _NAMED and isinstance(value, list | tuple):
        yield f"{path} in order", ", ".join(item["name"] for item in value)
        for item in value:
            yield from _flat(item, f"{path}[{item['name']}]", secret=secret)
    elif secret and value:
        yield path, f"secret {hashlib.blake2b(msgspec.json.encode(value), digest_size=4).hexdigest()}"
    else:
        yield path, msgspec.json.encode(value).decode()
