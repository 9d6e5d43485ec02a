"""Body fields by which a client may name the run that a request belongs to, the same in every dialect that has them."""

from collections.abc import Mapping

import msgspec

from gateway.api.chat_body import ConversationId
from gateway.runs.identity import BODY_FIELDS

RunHints = tuple[tuple[str, str], ...]


class RunFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Extensions of whichever dialect does not have them itself; what they hold is checked by `runs.identity`."""

    program_id: str | None = None
    session_id: str | None = None
    litellm_session_id: str | None = None


def run_hints(given: msgspec.Struct) -> RunHints:
    """What a body says of its run, unchecked, as (path, value); fields that the dialect has not are passed over."""
    metadata = getattr(given, "metadata", None)
    hints = []
    for path in BODY_FIELDS:
        outer, _, inner = path.partition(".")
        value = _inside(metadata, inner) if inner else getattr(given, outer, None)
        if isinstance(value, ConversationId):
            value = value.id
        if isinstance(value, str):
            hints.append((path, value))
    return tuple(hints)


def _inside(metadata: object, name: str) -> object:
    return metadata.get(name) if isinstance(metadata, Mapping) else getattr(metadata, name, None)
