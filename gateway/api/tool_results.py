"""Checks that tool results follow the message with the calls directly: exactly one for each call."""

from collections.abc import Sequence

from gateway.errors import BadRequest
from gateway.request import Message


def check_call_order(messages: Sequence[Message], *, param: str) -> None:
    """Raise BadRequest that names the call at fault."""
    unanswered: list[str] = []
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id not in unanswered:
                raise BadRequest(
                    f"{param}: a result for '{message.tool_call_id}' answers no open call: send it once, "
                    "right after the message with that call",
                    param=param,
                )
            unanswered.remove(message.tool_call_id)
            continue
        _check_answered(unanswered, param)
        unanswered = [call.id for call in message.tool_calls]
        if len(set(unanswered)) < len(unanswered):
            raise BadRequest(f"{param}: two calls of one message have the same id: give each call its own id", param=param)
    _check_answered(unanswered, param)


def _check_answered(unanswered: Sequence[str], param: str) -> None:
    if unanswered:
        names = ", ".join(f"'{name}'" for name in unanswered[:5])
        raise BadRequest(f"{param}: calls {names} have no result: send one for each right after them", param=param)
