"""Policy reload while the gateway runs: as a whole or not at all. Every attempt is written to the audit log.

The parts in FIXED need a restart. A file that changes one of them is rejected, and the error names the part.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from gateway.policy.diff import diff_policies, policy_hash
from gateway.policy.load import PolicyError, load_files
from gateway.policy.schema import Policy
from gateway.runtime.private_files import make_private

FIXED = ("listen", "devices", "tiers", "models", "workers", "upstreams", "limits")

log = logging.getLogger("headway.policy")


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log. `who` is `file` or `signal`; `hash` is that of the policy in force afterwards."""

    at: float
    who: str
    file: str
    accepted: bool
    hash_before: str
    hash: str
    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class AuditLog:
    """Append-only file of JSON lines. Every entry also goes to the process's log; without a file, only there."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def add(self, entry: Audited) -> None:
        details = "; ".join(entry.changes + entry.problems)
        log.info("policy %s %s: %s", entry.file, "changed" if entry.accepted else "rejected", details)
        if self._path is None:
            return
        try:
            make_private(self._path)
            with self._path.open("ab") as out:
                out.write(msgspec.json.encode(entry) + b"\n")
        except OSError as error:
            log.error("%s: the change is not in the audit log: %s", self._path, error)


class Reloader:
    """Reloader of one policy file. `apply` gets a checked policy; it may reject it by raising ValueError or OSError."""

    def __init__(
        self,
        path: Path,
        policy: Policy,
        *,
        env: Mapping[str, str],
        apply: Callable[[Policy], None],
        audit: AuditLog,
    ) -> None:
        self.policy = policy
        self._path, self._env, self._apply, self._audit = path, env, apply, audit
        self._files: tuple[Path, ...] = (path,)
        with contextlib.suppress(PolicyError):  # changed since it was read: the next reload reports the problem
            self._files = load_files(path, env).files
        self._seen = self._stamp()

    def look(self, now: float) -> bool:
        """Reload if a file changed since the last call. Return whether the policy changed. Costs one `stat` a file."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        return self.reload("file", now)

    def reload(self, who: str, now: float) -> bool:
        """Load the file and apply it. Return whether the policy changed. `now` is Unix time."""
        hash_before = policy_hash(self.policy)
        try:
            loaded = load_files(self._path, self._env)
            self._files = loaded.files
            self._seen = self._stamp()
            changes = diff_policies(self.policy, loaded.policy)
            if not changes:
                return False
            _refuse_fixed(self._path, self.policy, loaded.policy)
            self._apply(loaded.policy)
        except (PolicyError, ValueError, OSError) as error:
            problems = tuple(str(error).splitlines())
            self._audit_attempt(who, now, accepted=False, hash_before=hash_before, problems=problems)
            return False
        self.policy = loaded.policy
        self._audit_attempt(who, now, accepted=True, hash_before=hash_before, changes=tuple(map(str, changes)))
        return True

    def _audit_attempt(
        self,
        who: str,
        now: float,
        *,
        accepted: bool,
        hash_before: str,
        changes: tuple[str, ...] = (),
        problems: tuple[str, ...] = (),
    ) -> None:
        self._audit.add(
            Audited(
                at=now,
                who=who,
                file=str(self._path),
                accepted=accepted,
                hash_before=hash_before,
                hash=policy_hash(self.policy),
                changes=changes,
                problems=problems,
            )
        )

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(map(_stamp_of, self._files))


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _refuse_fixed(path: Path, old: Policy, new: Policy) -> None:
    if changed := [part for part in FIXED if getattr(old, part) != getattr(new, part)]:
        raise ValueError(f"{path}: {', '.join(changed)} changed, which needs a restart: the old policy stays in force")
