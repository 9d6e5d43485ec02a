"""Body fields that name the run of a request. They are the same in every dialect that has them."""

from collections.abc import Mapping

import msgspec

from gateway.api.chat_body import ConversationId
from gateway.runs.identity import BODY_FIELDS

RunHints = tuple[tuple[str, str], ...]


class RunFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Extensions for dialects without such fields of their own. `runs.identity` checks their values."""

    program_id: str | None = None
    session_id: str | None = None
    litellm_session_id: str | None = None


def run_hints(decoded: msgspec.Struct) -> RunHints:
    """Return the body's run fields as (path, value), unchecked. Fields that the dialect does not have are skipped."""
    metadata = getattr(decoded, "metadata", None)
    hints = []
    for path in BODY_FIELDS:
        outer, _, inner = path.partition(".")
        value = _inside(metadata, inner) if inner else getattr(decoded, outer, None)
        if isinstance(value, ConversationId):
            value = value.id
        if isinstance(value, str):
            hints.append((path, value))
    return tuple(hints)


def _inside(metadata: object, name: str) -> object:
    return metadata.get(name) if isinstance(metadata, Mapping) else getattr(metadata, name, None)
