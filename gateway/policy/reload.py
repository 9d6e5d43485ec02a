"""A policy that changes while the gateway runs: as a whole or not at all, and every attempt is kept in the audit log.

What workers run is fixed at the start; a file that changes it is refused with the names of what would need a restart.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from gateway.policy.diff import diff_policies, policy_hash
from gateway.policy.load import PolicyError, load_files
from gateway.policy.schema import Policy

FIXED = ("listen", "devices", "tiers", "models", "workers", "upstreams", "limits")

log = logging.getLogger("headway.policy")


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log. `who` is `file` or `signal`; `hash` is of the policy that holds afterwards."""

    at: float
    who: str
    file: str
    accepted: bool
    hash_before: str
    hash: str
    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class AuditLog:
    """JSON lines, only ever added to; without a file they are told to the process's log."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def add(self, one: Audited) -> None:
        log.info("policy %s %s: %s", one.file, "changed" if one.accepted else "refused", "; ".join(one.changes + one.problems))
        if self._path is None:
            return
        try:
            with self._path.open("ab") as out:
                out.write(msgspec.json.encode(one) + b"\n")
        except OSError as error:
            log.error("%s: the change is not in the audit log: %s", self._path, error)


class Reloader:
    """`apply` takes a policy that has passed every check; what it raises (ValueError, OSError) refuses the policy."""

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
        with contextlib.suppress(PolicyError):  # it changed since it was read: the next reload says what is wrong
            self._files = load_files(path, env).files
        self._seen = self._stamp()

    def look(self, now: float) -> bool:
        """Whether a file changed since the last look, and with it the policy. Cheap: one `stat` a file."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        return self.reload("file", now)

    def reload(self, who: str, now: float) -> bool:
        """True when another policy holds now. `now` is Unix time."""
        before = policy_hash(self.policy)
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
            self._tell(who, now, accepted=False, before=before, problems=problems)
            return False
        self.policy = loaded.policy
        self._tell(who, now, accepted=True, before=before, changes=tuple(map(str, changes)))
        return True

    def _tell(
        self,
        who: str,
        now: float,
        *,
        accepted: bool,
        before: str,
        changes: tuple[str, ...] = (),
        problems: tuple[str, ...] = (),
    ) -> None:
        self._audit.add(
            Audited(
                at=now,
                who=who,
                file=str(self._path),
                accepted=accepted,
                hash_before=before,
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
        raise ValueError(f"{path}: {', '.join(changed)} changed, which needs a restart: nothing of the file was taken over")
