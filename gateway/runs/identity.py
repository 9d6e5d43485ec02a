"""Run and chain of a request from its headers and body, and minted ids that identify them without any header.

All ids are namespaced by tenant: no header of one tenant can name a run of another. Other tools' headers that are no valid id
are ignored. A malformed `x-headway-*` header is an error, because it is meant for this gateway.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gateway.errors import BadRequest

MAX_ID_LENGTH = 200
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=~-]{0,199}\Z")
_USER_SESSION = re.compile(r"""(?:session_|"session_id"\s*:\s*")([0-9a-fA-F-]{36})(?:\Z|")""")
"""Session id inside the user id of coding clients: `user_..._session_<uuid>`, or a JSON object."""
_TRUE = ("1", "true", "yes")
_HANDLE_BYTES, _NONCE_BYTES, _MAC_BYTES = 8, 4, 6
_MINTED_CHARS = 4 * (_HANDLE_BYTES + _NONCE_BYTES + _MAC_BYTES) // 3

Hints = Iterable[tuple[str, str]]


class Identity(NamedTuple):
    """Run and chain of a request, namespaced (`tenant:id`). `source` is the field that named them. This turn ends the run if
    `final`, and the chain if `closes`."""

    run: str
    chain: str
    parent: str | None
    source: str
    final: bool
    closes: bool = False


class _Family(NamedTuple):
    """Headers that one tool sends together. Without a chain header the run has one chain of the same id."""

    run: str
    chain: str | None = None
    parent: str | None = None
    final: str | None = None


_FAMILIES = (
    _Family("x-headway-run-id", "x-headway-chain-id", "x-headway-parent-chain-id", "x-headway-run-final"),
    _Family("x-claude-code-session-id", "x-claude-code-agent-id", "x-claude-code-parent-agent-id"),
    _Family("session-id"),
    _Family("session_id"),
    _Family("thread-id"),
    _Family("x-session-id"),
    _Family("x-session-affinity"),
    _Family("x-opencode-session"),
    _Family("x-dynamo-session-id", None, "x-dynamo-parent-session-id", "x-dynamo-session-final"),
    _Family("x-litellm-trace-id"),
    _Family("helicone-session-id", "helicone-session-path"),
    _Family("x-llm-d-inference-fairness-id"),
)
HINTS = (
    "litellm_session_id",
    "metadata.litellm_session_id",
    "metadata.session_id",
    "metadata.user_id",
    "program_id",
    "session_id",
    "prompt_cache_key",
    "conversation",
)
"""Body fields that name a run, the most reliable first."""
BODY_FIELDS = (*HINTS, "previous_response_id")
"""Body fields that identify a run. The last names the previous answer, which `RunRegistry.infer` maps to its run."""


def identify(headers: Mapping[str, str], hints: Hints, *, tenant: str) -> Identity | None:
    """Return the identity from headers (names in lower case) or body hints, by the first field with an id; None without one.

    Raises BadRequest for an `x-headway-*` header that is no id.
    """
    for family in _FAMILIES:
        if family.run in headers and (run := _read(headers, family.run)) is not None:
            return _from_family(family, run, headers, tenant)
    values = dict(hints)
    for hint in HINTS:
        value = values.get(hint, "")
        if hint == "metadata.user_id":
            match = _USER_SESSION.search(value)
            value = match.group(1) if match else ""
        if _ID.match(value):
            return Identity(_named(tenant, value), _named(tenant, value), None, hint, final=False)
    return None


def new_run(tenant: str, random_id: str) -> Identity:
    """Return the identity of a new run with the given random id."""
    run = _named(tenant, f"run-{random_id}")
    return Identity(run, run, None, "new", final=False)


def public_id(run: str) -> str:
    """Return the id as the client knows it, without the tenant."""
    return run.partition(":")[2]


def _from_family(family: _Family, run: str, headers: Mapping[str, str], tenant: str) -> Identity:
    chain = _read(headers, family.chain)
    parent = _read(headers, family.parent)
    final = headers.get(family.final, "").strip().lower() in _TRUE if family.final else False
    if family.chain is None and parent is not None:  # a sub-agent with a session of its own, inside its parent's run
        # The end of the sub-agent does not end its parent.
        run, chain = parent, _named(tenant, parent, run)
        return Identity(_named(tenant, run), chain, _named(tenant, run), family.run, final=False, closes=final)
    return Identity(
        run=_named(tenant, run),
        chain=_named(tenant, run, chain) if chain else _named(tenant, run),
        parent=_named(tenant, run, parent) if parent else None,
        source=family.run,
        final=final,
    )


def _named(tenant: str, *parts: str) -> str:
    return ":".join([tenant, "#".join(parts)])


def _read(headers: Mapping[str, str], name: str | None) -> str | None:
    value = headers.get(name, "").strip().lstrip("/") if name else ""
    if not value:
        return None
    if _ID.match(value):
        return value
    if name and name.startswith("x-headway-"):
        raise BadRequest(
            f"{name} must be {MAX_ID_LENGTH} characters at most, of letters, digits and . _ : / @ + = ~ -", param=name
        )
    return None


def chain_handle(chain: str) -> bytes:
    """Return the eight bytes that identify a chain inside minted ids."""
    return hashlib.blake2b(chain.encode(), digest_size=_HANDLE_BYTES).digest()


def mint_id(secret: bytes, chain: str, number: int, *, tenant: str, prefix: str = "call_") -> str:
    """Return an id of a tool call or an answer that identifies its chain: a prefix and 24 characters. `number` makes it unique
    in the chain. The number comes first, so that ids of one time are close in the ledger's index."""
    body = (number % 2 ** (8 * _NONCE_BYTES)).to_bytes(_NONCE_BYTES, "big") + chain_handle(chain)
    return prefix + base64.urlsafe_b64encode(body + _mac(secret, body, tenant)).decode()


def read_id(secret: bytes, minted: str, *, tenant: str) -> bytes | None:
    """Return the chain's handle if this gateway minted the id for this tenant, else None. Never raises."""
    try:
        raw = base64.b64decode(minted[-_MINTED_CHARS:], altchars=b"-_", validate=True)
    except ValueError:
        return None
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    return body[_NONCE_BYTES:] if hmac.compare_digest(mac, _mac(secret, body, tenant)) else None


def _mac(secret: bytes, body: bytes, tenant: str) -> bytes:
    return hashlib.blake2b(body + tenant.encode(), digest_size=_MAC_BYTES, key=secret[:64]).digest()
