"""Authentication: an API key resolves to one tenant.

Only hashes of keys are kept and compared, under a secret of the process, so that neither memory nor timing reveals a key.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gateway.errors import Unauthorized
from gateway.ledger.key_store import limits_of
from gateway.ledger.rows import KeyRow
from gateway.metering.rate_limits import NO_LIMITS, LimitedParty
from gateway.policy.schema import Policy, RateLimits
from gateway.policy.validate import is_loopback, requires_key

DEVELOPMENT_TENANT = "development"
MAX_KEY_BYTES = 512

Headers = Iterable[tuple[bytes, bytes]]


class Caller(NamedTuple):
    """Tenant of a request. `key_id` names the key in the ledger; it is "" if no key is required."""

    tenant: str
    key_id: str = ""
    in_store: bool = False
    limited: tuple[LimitedParty, ...] = ()
    """Parties whose rate limits apply: the key and its tenant."""


class KeylessBindError(ValueError):
    """The policy has no keys and the address is not loopback."""


class Keys:
    """API keys of the policy and the key store.

    Without any key every request belongs to the development tenant, and the address must be loopback. If all keys of a store
    were revoked, no request is admitted.
    """

    def __init__(self, policy: Policy, stored: Iterable[KeyRow] = (), *, clock: Callable[[], float] = time.time) -> None:
        """Stored keys of tenants that are not in the policy are ignored. `clock` returns Unix time."""
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        self._used_at: dict[str, float] = {}
        self._callers: dict[bytes, Caller] = {}
        self.required = requires_key(policy)
        of_tenant = {name: _limited("tenant", name, tenant.limits) for name, tenant in policy.tenants.items()}
        for name, tenant in policy.tenants.items():
            for key in tenant.keys:
                self._add(_sha256(key.encode()), Caller(name, key_id_of(key.encode()), limited=of_tenant[name]))
        for id, hashed in policy.keys.items():
            limited = _limited("key", id, hashed.limits) + of_tenant[hashed.tenant]
            self._add(bytes.fromhex(hashed.hash.removeprefix("sha256:")), Caller(hashed.tenant, id, limited=limited))
        for row in stored:
            self.required = True
            if not row.revoked_at and row.tenant in policy.tenants:
                limited = _limited("key", row.id, limits_of(row)) + of_tenant[row.tenant]
                self._add(row.digest, Caller(row.tenant, row.id, True, limited))

    def tenant_of(self, headers: Headers) -> str:
        """Return the tenant of a request. Raises Unauthorized."""
        return self.caller_of(headers).tenant

    def caller_of(self, headers: Headers) -> Caller:
        """Return the caller from `Authorization: Bearer KEY` or `x-api-key: KEY`. Raises Unauthorized."""
        if not self.required:
            return Caller(DEVELOPMENT_TENANT)
        key = _key_in(headers)
        if not key:
            raise Unauthorized("no API key: send one as `Authorization: Bearer KEY`")
        # The lookup uses a hash under a secret of this process, so its timing reveals nothing about any key.
        caller = self._callers.get(self._place(_sha256(key))) if len(key) <= MAX_KEY_BYTES else None
        if caller is None:
            raise Unauthorized("this API key is unknown or was revoked: send a valid key")
        if caller.in_store:
            self._used_at[caller.key_id] = self._clock()
        return caller

    def take_uses(self) -> dict[str, float]:
        """Return the stored keys used since the last call, with the time of use (Unix time)."""
        uses, self._used_at = self._used_at, {}
        return uses

    def _add(self, digest: bytes, caller: Caller) -> None:
        self._callers.setdefault(self._place(digest), caller)

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=32, key=self._secret).digest()


def _limited(kind: str, name: str, limits: RateLimits) -> tuple[LimitedParty, ...]:
    return () if limits == NO_LIMITS else (LimitedParty(f'{kind} "{name}"', limits),)


def key_id_of(key: bytes) -> str:
    """Return the ledger's id of a key. It is the same in every process, so that its costs can be summed."""
    return hashlib.blake2b(key, digest_size=6, person=b"headway-key-id").hexdigest()


def check_bind(policy: Policy, host: str) -> None:
    """Raise KeylessBindError if the policy has no keys and `host` is not loopback."""
    if not requires_key(policy) and not is_loopback(host):
        raise KeylessBindError(
            f"the policy has no API keys, so the gateway only listens on loopback, not on {host}: "
            "add `tenants: {NAME: {keys: [${SOME_VARIABLE}]}}` to the policy, set `listen: {require_key: true}` to admit only "
            "keys of the key store, or listen on 127.0.0.1"
        )


def _sha256(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _key_in(headers: Headers) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
        if name == b"x-api-key":
            return value.strip()
    return b""


class CurrentKeys:
    """The keys in force. A policy reload and `headway keys` replace them while requests are served."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def replace(self, keys: Keys) -> None:
        self._keys = keys

    @property
    def required(self) -> bool:
        return self._keys.required

    def tenant_of(self, headers: Headers) -> str:
        return self._keys.tenant_of(headers)

    def caller_of(self, headers: Headers) -> Caller:
        return self._keys.caller_of(headers)

    def take_uses(self) -> dict[str, float]:
        return self._keys.take_uses()
