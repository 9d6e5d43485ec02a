"""Which run and chain a request belongs to, as its headers and body say, and the ids that we mint so that none need say it.

Everything is namespaced by tenant: no header of one tenant can name a run of another. Headers of other tools that do not
look like ids are passed over; a malformed `x-headway-*` header is an error, because whoever sends one means us.
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
"""In the user id that coding clients make: `user_..._session_<uuid>`, or a JSON object."""
_TRUE = ("1", "true", "yes")
_HANDLE_BYTES, _NONCE_BYTES, _MAC_BYTES = 8, 4, 6
_MINTED_CHARS = 4 * (_HANDLE_BYTES + _NONCE_BYTES + _MAC_BYTES) // 3

Hints = Iterable[tuple[str, str]]


class Identity(NamedTuple):
    """`run` and `chain` are namespaced (`tenant:id`); `source` names the field that said so. With this turn the run is over if
    `final`, and its chain if `closes`."""

    run: str
    chain: str
    parent: str | None
    source: str
    final: bool
    closes: bool = False


class _Family(NamedTuple):
    """Headers that one tool sends together. Without a chain header the run has one chain, called as the run."""

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
"""Body fields, best first."""
BODY_FIELDS = (*HINTS, "previous_response_id")
"""The last names no run but the answer that this turn follows: `RunRegistry.infer` knows whose it was."""


def identify(headers: Mapping[str, str], hints: Hints, *, tenant: str) -> Identity | None:
    """What headers (names in lower case) and body hints say; the first field that holds an id wins. None: nothing said.

    Raises BadRequest for an `x-headway-*` header that is no id.
    """
    for family in _FAMILIES:
        if family.run in headers and (run := _read(headers, family.run)) is not None:
            return _from_family(family, run, headers, tenant)
    given = dict(hints)
    for hint in HINTS:
        value = given.get(hint, "")
        if hint == "metadata.user_id":
            match = _USER_SESSION.search(value)
            value = match.group(1) if match else ""
        if _ID.match(value):
            return Identity(_named(tenant, value), _named(tenant, value), None, hint, final=False)
    return None


def new_run(tenant: str, random_id: str) -> Identity:
    """A run of its own, with an id made by the caller of this function."""
    run = _named(tenant, f"run-{random_id}")
    return Identity(run, run, None, "new", final=False)


def public_id(run: str) -> str:
    """The id as the client knows it, without the tenant."""
    return run.partition(":")[2]


def _from_family(family: _Family, run: str, headers: Mapping[str, str], tenant: str) -> Identity:
    chain = _read(headers, family.chain)
    parent = _read(headers, family.parent)
    final = headers.get(family.final, "").strip().lower() in _TRUE if family.final else False
    if family.chain is None and parent is not None:  # a sub-agent with a session of its own, inside its parent's run
        # That it is over says nothing of its parent.
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
    """Eight bytes that stand for a chain inside the ids that we mint."""
    return hashlib.blake2b(chain.encode(), digest_size=_HANDLE_BYTES).digest()


def mint_id(secret: bytes, chain: str, number: int, *, tenant: str, prefix: str = "call_") -> str:
    """The id of a tool call or of an answer, a prefix and 24 characters, which says of which chain it is. `number` tells ids of
    one chain apart. It comes first, so that in the ledger's index ids of one time lie together."""
    body = (number % 2 ** (8 * _NONCE_BYTES)).to_bytes(_NONCE_BYTES, "big") + chain_handle(chain)
    return prefix + base64.urlsafe_b64encode(body + _mac(secret, body, tenant)).decode()


def read_id(secret: bytes, minted: str, *, tenant: str) -> bytes | None:
    """The chain's handle, if we minted this id for this tenant; else None. Never raises."""
    try:
        raw = base64.b64decode(minted[-_MINTED_CHARS:], altchars=b"-_", validate=True)
    except ValueError:
        return None
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    return body[_NONCE_BYTES:] if hmac.compare_digest(mac, _mac(secret, body, tenant)) else None


def _mac(secret: bytes, body: bytes, tenant: str) -> bytes:
    return hashlib.blake2b(body + tenant.encode(), digest_size=_MAC_BYTES, key=secret[:64]).digest()
