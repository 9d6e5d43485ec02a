"""Who pays: an API key resolves to one tenant.

Of keys only hashes are kept and compared, under a secret of the process, so that neither memory nor timing shows them.
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
    """`key_id` names the key in the ledger and is "" where none is needed."""

    tenant: str
    key_id: str = ""
    in_store: bool = False
    limited: tuple[LimitedParty, ...] = ()
    """Whose limits its requests count towards: the key's, and its tenant's."""


class KeylessBindError(ValueError):
    """The policy has no keys and would listen where others can reach it."""


class Keys:
    """Those of the policy and of the key store. Where there is none everybody is the development tenant, which must listen on
    loopback only; a store all of whose keys were revoked lets nobody in."""

    def __init__(self, policy: Policy, stored: Iterable[KeyRow] = (), *, clock: Callable[[], float] = time.time) -> None:
        """`stored` keys of tenants that the policy does not have let nobody in. `clock` is Unix time."""
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
        """Raises Unauthorized."""
        return self.caller_of(headers).tenant

    def caller_of(self, headers: Headers) -> Caller:
        """`Authorization: Bearer KEY` or `x-api-key: KEY`. Raises Unauthorized."""
        if not self.required:
            return Caller(DEVELOPMENT_TENANT)
        key = _key_in(headers)
        if not key:
            raise Unauthorized("no API key: send one as `Authorization: Bearer KEY`")
        # The lookup is by a hash under a secret of this process: its timing says nothing about any key.
        caller = self._callers.get(self._place(_sha256(key))) if len(key) <= MAX_KEY_BYTES else None
        if caller is None:
            raise Unauthorized("this API key is not known, or was revoked: ask for another")
        if caller.in_store:
            self._used_at[caller.key_id] = self._clock()
        return caller

    def take_uses(self) -> dict[str, float]:
        """Keys of the store that were used since this was last asked, and when (Unix time)."""
        uses, self._used_at = self._used_at, {}
        return uses

    def _add(self, digest: bytes, caller: Caller) -> None:
        self._callers.setdefault(self._place(digest), caller)

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=32, key=self._secret).digest()


def _limited(kind: str, name: str, limits: RateLimits) -> tuple[LimitedParty, ...]:
    return () if limits == NO_LIMITS else (LimitedParty(f'{kind} "{name}"', limits),)


def key_id_of(key: bytes) -> str:
    """The same in every process, so that what a key spent is found again."""
    return hashlib.blake2b(key, digest_size=6, person=b"headway-key-id").hexdigest()


def check_bind(policy: Policy, host: str) -> None:
    """Raises KeylessBindError."""
    if not requires_key(policy) and not is_loopback(host):
        raise KeylessBindError(
            f"the policy has no API keys, so the gateway only listens on loopback, not on {host}: "
            "add `tenants: {NAME: {keys: [${SOME_VARIABLE}]}}` to the policy, set `listen: {require_key: true}` to let in the "
            "key store's alone, or listen on 127.0.0.1"
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
    """The keys in force, which change while requests are served: by a policy reload, or by `headway keys`."""

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
