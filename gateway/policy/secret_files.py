"""Secrets of a policy from files: `key_file`, `key_files` and `token_file`. A file's content is never in a message."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from gateway.policy.regular_file import read_regular
from gateway.policy.schema import Policy, Tenant, Upstream, Worker

MAX_SECRET_BYTES = 4_096
CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Variable of systemd with the folder of a service's credentials. A relative name is looked up there first."""

Key = tuple[str | int, ...]
Report = Callable[[Key, str], None]


class SecretFiles:
    """Reader of a policy's secrets. `files` are those that were read. `report` is called with each problem."""

    def __init__(self, folder: Path, env: Mapping[str, str], report: Report) -> None:
        self.files: list[Path] = []
        self._folders = [Path(path) for path in (env.get(CREDENTIALS), str(folder)) if path]
        self._report = report

    def filled(self, policy: Policy) -> Policy:
        """Return the policy with the secrets of its files."""
        return msgspec.structs.replace(
            policy,
            tenants={name: self._tenant(name, tenant) for name, tenant in policy.tenants.items()},
            upstreams={name: self._upstream(name, upstream) for name, upstream in policy.upstreams.items()},
            workers={name: self._worker(name, worker) for name, worker in policy.workers.items()},
        )

    def _tenant(self, name: str, tenant: Tenant) -> Tenant:
        read = [self._read(file, ("tenants", name, "key_files", n)) for n, file in enumerate(tenant.key_files)]
        return msgspec.structs.replace(tenant, keys=(*tenant.keys, *filter(None, read))) if read else tenant

    def _upstream(self, name: str, upstream: Upstream) -> Upstream:
        key = self._secret(upstream.key, upstream.key_file, "key", ("upstreams", name, "key_file"))
        return msgspec.structs.replace(upstream, key=key)

    def _worker(self, name: str, worker: Worker) -> Worker:
        token = self._secret(worker.token, worker.token_file, "token", ("workers", name, "token_file"))
        return msgspec.structs.replace(worker, token=token)

    def _secret(self, given: str | None, file: str | None, field: str, key: Key) -> str | None:
        """Return the secret that is given in the policy or in a file. Both are a problem."""
        if file is None:
            return given
        if given is not None:
            self._report(key, f"stands beside `{field}`: give one of them")
        return self._read(file, key)

    def _read(self, file: str, key: Key) -> str | None:
        path = next((path for folder in self._folders if (path := folder / file).exists()), self._folders[-1] / file)
        self.files.append(path)
        try:
            secret = read_regular(path, MAX_SECRET_BYTES).strip()
        except OSError as error:
            self._report(key, f"{file} cannot be read: {os.strerror(error.errno or 0)}")
        except ValueError as error:
            self._report(key, f"{file} {error}")
        else:
            if secret and secret.isprintable():
                return secret
            self._report(key, f"{file} must have one line with the secret")
        return None


def secrets_of(policy: Policy) -> Iterator[str]:
    """Yield every secret of a policy in plain text."""
    for tenant in policy.tenants.values():
        yield from tenant.keys
    yield from (upstream.key for upstream in policy.upstreams.values() if upstream.key)
    yield from (worker.token for worker in policy.workers.values() if worker.token)
