"""What a connection does with what is no request yet, or none any more; over real sockets, in front of a bare application."""

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn

from gateway.http import protocol as connection
from gateway.http.protocol import MAX_HEAD_BYTES, BoundedHttpProtocol
from gateway.http.server import Server, listen

open_answers = set[int]()
HELLO = b"GET /hello HTTP/1.1\r\nhost: here\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """/hello says hello, /stream three words, /slow too and does not end, /pause nothing
    for long; /read says how much it read and with which headers."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/hello":
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}
        await send(start)
        await send({"type": "http.response.body", "body": b"hello"})
        return
    if scope["path"] == "/read":
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        names = b",".join(name for name, _ in scope["headers"])
        said = b"%d of %b" % (len(body), names)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for word in (b"one ", b"two ", b"three") if scope["path"] != "/pause" else ():
        await send({"type": "http.response.body", "body": word, "more_body": True})
    if scope["path"] in ("/slow", "/pause"):
        open_answers.add(id(scope))
        while (await receive())["type"] != "http.disconnect":
            pass
        open_answers.discard(id(scope))
        return
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(*, max_connections: int = 8, max_head_s: float = 75) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        http=partial(BoundedHttpProtocol, max_connections=max_connections),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        log_level="error",
        timeout_keep_alive=max_head_s,  # type: ignore[arg-type]
    )
    sockets = listen("127.0.0.1", 0)
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets))
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        await task


async def said(port: int, *parts: bytes) -> bytes:
    """All that comes back until the connection is closed from over there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while more := await reader.read(65_536):
                got += more
    writer.close()
    return got


def error_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    error: dict[str, Any] = json.loads(body)["error"]
    return error


async def test_bytes_that_are_not_http_get_a_400() -> None:
    async with serving() as port:
        answer = await said(port, b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert "not valid HTTP/1.1" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /hello HTTP/1.1\r\nx: " + MAX_HEAD_BYTES * b"a" + b"\r\n\r\n"],
        [b"GET /hello HTTP/1.1\r\n", *[b"x%d: %b\r\n" % (number, 9_000 * b"a") for number in range(9)]],
        [b"GET /hello HTTP/1.1\r\nx: ", *[9_000 * b"a"] * 9],
        [b"GET /" + MAX_HEAD_BYTES * b"a" + b" HTTP/1.1\r\n\r\n"],
    ],
)
async def test_head_over_the_limit_is_a_431_in_any_segmentation(parts: list[bytes]) -> None:
    async with serving() as port:
        answer = await said(port, *parts)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert error_of(answer)["code"] == "headers_too_large"


async def test_head_limit_applies_to_each_request_of_a_connection() -> None:
    async with serving() as port:
        large = b"GET /hello HTTP/1.1\r\nx: " + 60_000 * b"a" + b"\r\n\r\n"
        answer = await said(port, large, large, large.replace(b"x:", b"connection: close\r\nx:"))
        assert answer.count(b"hello") == 3


@pytest.mark.parametrize("parts", [[], [b"GET /hello HTT"], [HELLO], [HELLO, HELLO[:9]]])
async def test_connection_without_a_whole_head_in_time_is_closed(parts: list[bytes]) -> None:
    async with serving(max_head_s=0.2) as port:
        answer = await said(port, *parts)
        assert answer.count(b"hello") == (1 if HELLO in parts else 0)


async def test_dripping_head_gets_no_more_time() -> None:
    async with serving(max_head_s=0.3) as port:
        began = asyncio.get_running_loop().time()
        await said(port, *[HELLO[at : at + 1] for at in range(len(HELLO) - 1)], *[b"x"] * 30)
        assert asyncio.get_running_loop().time() - began < 4


@pytest.mark.parametrize("before", [b"", HELLO])
async def test_an_answer_may_take_longer_than_a_head(before: bytes) -> None:
    async with serving(max_head_s=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(before + SLOW)
        assert await reader.readuntil(b"three")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await reader.readuntil(b"\r\n0\r\n")
        writer.close()


async def test_connection_over_the_limit_gets_a_503() -> None:
    async with serving(max_connections=1) as port:
        _, first = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
        answer = await said(port)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after-ms: 1000" in answer
        first.close()
        await asyncio.sleep(0.05)
        assert (await said(port, HELLO.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))).endswith(b"hello")


async def test_requests_in_a_row_are_answered_in_order() -> None:
    async with serving() as port:
        last = b"GET /stream HTTP/1.1\r\nconnection: close\r\n\r\n"
        answer = await said(port, HELLO + HELLO + last)
        assert answer.count(b"hello") == 2
        assert answer.rindex(b"hello") < answer.index(b"three")


async def test_a_head_and_what_follows_at_once_are_one_segment() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(HELLO)
            assert (await reader.read(65_536)).endswith(b"\r\n\r\nhello")
        writer.close()


async def test_a_head_that_nothing_follows_goes_out_alone() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /pause HTTP/1.1\r\nhost: here\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_http_1_0_gets_no_chunks() -> None:
    async with serving() as port:
        head, _, body = (await said(port, b"GET /stream HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body == b"one two three"
        assert (await said(port, b"GET /hello HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nhello")


async def test_streaming_answer_ends_when_invalid_http_follows() -> None:
    async with serving() as port:
        answer = await said(port, b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n", b"\x00\x01\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"three" in answer
        assert not answer.endswith(b"0\r\n\r\n")


async def test_body_with_wrong_framing_is_a_400() -> None:
    async with serving() as port:
        answer = await said(port, b"POST /hello HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nthis is no size\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_body_after_its_answer_is_drained_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_REST_BYTES", 100_000)
    async with serving() as port:
        head = b"POST /hello HTTP/1.1\r\ncontent-length: 100000000\r\n\r\n"
        answer = await said(port, head, *[50_000 * b"a"] * 4)
        assert answer.endswith(b"hello")


async def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as caught:
        listen("127.0.0.1", taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


POST = b"POST /read HTTP/1.1\r\nhost: here\r\n"
LAST = b"GET /hello HTTP/1.1\r\nconnection: close\r\n\r\n"
OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"


@pytest.mark.parametrize("parts", [1, 2, 50])
@pytest.mark.parametrize(
    "body",
    [
        b"content-length: 21\r\n\r\nGET /slow HTTP/1.1\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n15\r\n" + 21 * b"a" + b"\r\n0\r\n\r\n",
    ],
)
async def test_upgrade_request_is_answered_in_http_1_1(body: bytes, parts: int) -> None:
    sent = HELLO + POST + OFFER + body + LAST
    size = -(-len(sent) // parts)
    async with serving() as port:
        answer = await said(port, *[sent[at : at + size] for at in range(0, len(sent), size)])
        assert b"21 of host," in answer
        assert b"upgrade" not in answer
        assert (answer.count(b"HTTP/1.1 200"), answer.count(b"hello")) == (3, 2)


async def test_connect_method_is_refused() -> None:
    async with serving() as port:
        assert (await said(port, b"CONNECT there:80 HTTP/1.1\r\nhost: there\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_nothing_is_written_into_another_answer() -> None:
    async with serving() as port:
        answer = await said(port, SLOW, HELLO + b"\x00\x01\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("behind", [b"", HELLO, 9 * HELLO])
async def test_disconnect_is_noticed_with_pipelined_requests_behind(behind: bytes) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(SLOW)
        assert await reader.readuntil(b"three")
        writer.write(behind)
        await asyncio.sleep(0.05)
        assert open_answers
        writer.close()
        for _ in range(100):
            if not open_answers:
                return
            await asyncio.sleep(0.02)
        pytest.fail("nobody noticed")


async def test_few_requests_wait_behind_an_answer() -> None:
    async with serving() as port:
        assert (await said(port, SLOW, 3_000 * HELLO)).count(b"HTTP/1.1") == 1
        assert not open_answers
        assert (await said(port, 9 * HELLO + LAST)).count(b"hello") == 10


async def test_trailers_have_a_limit_and_are_no_headers() -> None:
    async with serving() as port:
        chunks = POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        answer = await said(port, chunks + b"authorization: me\r\n\r\n" + LAST)
        assert b"1 of host,transfer-encoding" in answer
        assert b"authorization" not in answer
        assert (await said(port, chunks, *[b"x: %b\r\n" % (9_000 * b"a")] * 9)).startswith(b"HTTP/1.1 431 ")
        assert (await said(port, chunks + b"x: ", *[9_000 * b"a"] * 9)).startswith(b"HTTP/1.1 431 ")


async def test_previous_body_does_not_count_towards_the_head_limit() -> None:
    async with serving() as port:
        body = POST + b"content-length: 200000\r\n\r\n" + 200_000 * b"a"
        answer = await said(port, body + LAST[:9], LAST[9:])
        assert b"200000 of" in answer
        assert answer.endswith(b"hello")


async def test_http_1_0_expects_nothing() -> None:
    async with serving() as port:
        head = b"POST /read HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n"
        answer = await said(port, head, b"a")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"1 of" in answer
        assert (await said(port, HELLO.replace(b"1.1", b"2.0"))).startswith(b"HTTP/1.1 400 ")


async def test_expect_100_continue_applies_to_one_request() -> None:
    async with serving() as port:
        answer = await said(port, HELLO.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"))
        assert answer.endswith(b"hello")
        assert b"connection: close" in answer


async def test_client_that_is_still_sending_receives_the_refusal() -> None:
    async with serving() as port:
        answer = await said(port, b"\x00\x01\r\n\r\n", *[1_000_000 * b"a"] * 3)
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_half_sent_body_ends_with_the_server() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"content-length: 9\r\n\r\nabc")
        await asyncio.sleep(0.05)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert "stopping" in error_of(answer)["message"]
    writer.close()


async def test_address_that_is_not_of_this_machine_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "203.0.113.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [elsewhere, here])
    (listening,) = listen("both", 0)
    assert listening.getsockname()[0] == "127.0.0.1"
    listening.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [elsewhere])
    with pytest.raises(OSError) as caught:
        listen("elsewhere", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
