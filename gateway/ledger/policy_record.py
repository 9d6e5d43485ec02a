"""Policy in a form that may be stored and shown: without keys, tokens and local paths."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from gateway.ledger.rows import PolicyRow
from gateway.policy.schema import Policy


def policy_row(policy: Policy, at: float) -> PolicyRow:
    body = msgspec.json.encode(shown(policy))
    return PolicyRow(at=at, digest=hashlib.blake2b(body, digest_size=6).hexdigest(), body=body)


def shown(policy: Policy) -> dict[str, Any]:
    """Return the policy as plain data, with secrets and local paths replaced."""
    plain: dict[str, Any] = msgspec.to_builtins(policy)
    for tenant in plain["tenants"].values():
        tenant["key_files"] = [Path(file).name for file in tenant["key_files"]]
        tenant["keys"] = [f"({len(tenant['keys'])} not shown)"] if tenant["keys"] else []
    for key in plain["keys"].values():
        key["hash"] = "(not shown)"
    for worker in plain["workers"].values():
        worker["token"] = "(not shown)" if worker["token"] else None
        worker["token_file"] = worker["token_file"] and Path(worker["token_file"]).name
        # A socket path reveals the layout of this machine. A host's address is kept: operators need it.
        if (worker["url"] or "").startswith("unix://"):
            worker["url"] = f"unix://.../{Path(worker['url']).name}"
    for upstream in plain["upstreams"].values():
        upstream["key"] = "(not shown)" if upstream["key"] else None
        upstream["key_file"] = upstream["key_file"] and Path(upstream["key_file"]).name
    for model in plain["models"].values():
        model["path"] = Path(model["path"]).name
    plain["router"] = plain["router"] and Path(plain["router"]).name
    return plain
