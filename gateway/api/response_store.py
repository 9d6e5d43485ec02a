"""Responses that clients may refer to: the conversation that each ends, and its body. Bounded; the oldest go first."""

from collections import OrderedDict
from typing import NamedTuple

from gateway.errors import NotFound
from gateway.request import Message

MAX_RESPONSES = 10_000
MAX_BYTES = 256 * 1024 * 1024


class Stored(NamedTuple):
    """`messages` are the whole conversation, instructions left out; `body` is what the client got."""

    messages: tuple[Message, ...]
    body: bytes
    size: int


class ResponseStore:
    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._kept: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, tenant: str, id: str, messages: tuple[Message, ...], body: bytes) -> None:
        size = len(body) + sum(map(_size, messages))
        self._kept[tenant, id] = Stored(messages, body, size)
        self._bytes += size
        while self._kept and (len(self._kept) > self._max_responses or self._bytes > self._max_bytes):
            self._bytes -= self._kept.popitem(last=False)[1].size

    def get(self, tenant: str, id: str) -> Stored:
        """Raises NotFound, also for another tenant's."""
        stored = self._kept.get((tenant, id))
        if stored is None:
            raise NotFound(f"there is no response {id[:100]!r}: it was not stored, is not yours, or made room for newer ones")
        return stored

    def delete(self, tenant: str, id: str) -> None:
        """Raises NotFound."""
        self.get(tenant, id)
        self._bytes -= self._kept.pop((tenant, id)).size


def _size(message: Message) -> int:
    """About its memory; conversations share messages, so their sum is on the high side."""
    return len(message.content) + len(message.reasoning) + sum(100 + len(call.arguments) for call in message.tool_calls)
