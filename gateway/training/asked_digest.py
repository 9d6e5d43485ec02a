"""Digest of a conversation as it was asked, which binds a label's messages to the answer that it labels."""

from collections.abc import Sequence
from hashlib import blake2b

from gateway.request import Message, Request, Tool

_DIGEST_BYTES = 16


def digest_of(request: Request, id: str) -> str:
    """Return the digest of a request. A raw prompt counts as one user message."""
    messages = request.messages if request.text is None else (Message(role="user", content=request.text),)
    return asked_digest(messages, request.tools, request=id)


def asked_digest(messages: Sequence[Message], tools: Sequence[Tool], *, request: str) -> str:
    """Return the digest of messages and of tools' names, joined by a colon. It is keyed by the request's id, so that equal
    questions have different digests."""
    asked = blake2b(digest_size=_DIGEST_BYTES, key=request.encode()[:64])
    for message in messages:
        calls = [part for call in message.tool_calls for part in (call.name, call.arguments)]
        for part in (message.role, message.content, *calls):
            encoded = part.encode(errors="surrogatepass")
            asked.update(b"%d " % len(encoded))
            asked.update(encoded)
        asked.update(b".")
    return f"{asked.hexdigest()}:{_of_tools(tools, request)}"


def _of_tools(tools: Sequence[Tool], request: str) -> str:
    names = "\n".join(sorted(tool.name for tool in tools))
    return blake2b(names.encode(), digest_size=_DIGEST_BYTES, key=request.encode()[:64]).hexdigest()


def is_what_was_asked(digest: str, messages: Sequence[Message], tools: Sequence[Tool], *, request: str) -> bool:
    """Return whether a label's messages are those that were asked, and its tools, if it has any."""
    messages_digest, _, tools_digest = digest.partition(":")
    own_messages, _, own_tools = asked_digest(messages, tools, request=request).partition(":")
    return messages_digest == own_messages and (not tools or tools_digest == own_tools)
