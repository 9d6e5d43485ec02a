"""An OpenAI-compatible server with an immediate, constant answer: the upstream of the proxies in `overhead`.

`python -m benchmarks.mock_upstream PORT`. HTTP is written by hand on one asyncio protocol, so that it is never the bottleneck.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

FRAMES = 64
_WORDS = [f" w{i}" for i in range(FRAMES)]
_USAGE = {"prompt_tokens": 12, "completion_tokens": FRAMES, "total_tokens": 12 + FRAMES}
_HEAD = {"id": "chatcmpl-mock", "created": 1, "model": "mock"}


def _completion() -> bytes:
    message = {"role": "assistant", "content": "".join(_WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def _stream() -> bytes:
    events = [_event({"role": "assistant", "content": ""}, None)]
    events += [_event({"content": word}, None) for word in _WORDS]
    events += [_event({}, "stop"), b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


class _Server(asyncio.Protocol):
    """Parses requests by their content-length and writes one of two canned answers."""

    whole, streamed = _completion(), _stream()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.unread = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while (end := self.unread.find(b"\r\n\r\n")) >= 0:
            length = _content_length(self.unread[:end].lower())
            if len(self.unread) < end + 4 + length:
                return
            body, self.unread = self.unread[end + 4 : end + 4 + length], self.unread[end + 4 + length :]
            streams = b'"stream":true' in body.replace(b" ", b"")
            self.transport.write(self.streamed if streams else self.whole)


def _content_length(head: bytes) -> int:
    at = head.find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
