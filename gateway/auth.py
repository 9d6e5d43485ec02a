"""Who pays: an API key resolves to one tenant.

Keys are kept and compared as keyed hashes only, so that neither memory nor timing shows them.
"""

import hashlib
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from gateway.errors import Unauthorized
from gateway.policy.references import is_loopback
from gateway.policy.schema import Policy

DEVELOPMENT_TENANT = "development"
MAX_KEY_BYTES = 512

Headers = Iterable[tuple[bytes, bytes]]


class Caller(NamedTuple):
    """`key_id` names the key in the ledger and is "" where none is needed."""

    tenant: str
    key_id: str = ""


class KeylessBindError(ValueError):
    """The policy has no keys and would listen where others can reach it."""


class Keys:
    """With no key in the policy everybody is the development tenant, which must listen on loopback only."""

    def __init__(self, policy: Policy) -> None:
        self._secret = secrets.token_bytes(32)
        self._callers = {
            self._digest(key.encode()): Caller(name, key_id_of(key.encode()))
            for name, tenant in policy.tenants.items()
            for key in tenant.keys
        }

    @property
    def required(self) -> bool:
        return bool(self._callers)

    def tenant_of(self, headers: Headers) -> str:
        """Raises Unauthorized."""
        return self.caller_of(headers).tenant

    def caller_of(self, headers: Headers) -> Caller:
        """`Authorization: Bearer KEY` or `x-api-key: KEY`. Raises Unauthorized."""
        if not self._callers:
            return Caller(DEVELOPMENT_TENANT)
        key = _key_in(headers)
        if not key:
            raise Unauthorized("no API key: send one as `Authorization: Bearer KEY`")
        # The lookup is by a hash under a secret of this process: its timing says nothing about any key.
        caller = self._callers.get(self._digest(key)) if len(key) <= MAX_KEY_BYTES else None
        if caller is None:
            raise Unauthorized("this API key is not known")
        return caller

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, digest_size=32, key=self._secret).digest()


def key_id_of(key: bytes) -> str:
    """The same in every process, so that what a key spent is found again."""
    return hashlib.blake2b(key, digest_size=6, person=b"headway-key-id").hexdigest()


def check_bind(policy: Policy, host: str) -> None:
    """Raises KeylessBindError."""
    if not Keys(policy).required and not is_loopback(host):
        raise KeylessBindError(
            f"the policy has no API keys, so the gateway only listens on loopback, not on {host}: "
            "add `tenants: {NAME: {keys: [${SOME_VARIABLE}]}}` to the policy, or listen on 127.0.0.1"
        )


def _key_in(headers: Headers) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
        if name == b"x-api-key":
            return value.strip()
    return b""
