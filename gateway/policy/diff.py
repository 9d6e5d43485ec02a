"""Difference between two policies, and a policy's hash. Secrets are shown as digests, here and in every log."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gateway.policy.schema import Policy

_SECRET = ("keys", "key", "token", "api_key")
"""Fields with secrets. The top-level `keys` of a policy are not secret: they hold hashes, names and limits."""
_NAMED = ("routes",)
"""Lists compared by the names of their items, so that an inserted item does not change the others."""


class Change(NamedTuple):
    """One changed value, as JSON. `before` is None for an added value, `after` for a removed one."""

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
    """Return a hash of the policy's values, independent of the layout of its files."""
    flat = dict(_flat(msgspec.to_builtins(policy), "", secret=False))
    return f"blake2b-16:{hashlib.blake2b(msgspec.json.encode(flat, order='sorted'), digest_size=16).hexdigest()}"


def diff_policies(old: Policy, new: Policy) -> list[Change]:
    """Return changes by path in the order of the new policy, removed values last. The order of routes counts as a value."""
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
