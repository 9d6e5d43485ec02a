"""Many connections at once: whoever waits stands in the gateway's queue, and who says nothing holds up nobody."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.served import Served, ask, fake, serve, until

CROWD = 1_300
"""More than a server takes by default, and fewer than the files of a process by half."""
POLICY = """
tenants: {ash: {keys: [key-of-ash]}, oak: {keys: [key-of-oak]}}
limits: {max_queued_requests: 2000}
"""


async def post(http: aiohttp.ClientSession, served: Served, tenant: str, text: str) -> int:
    headers, body = {"authorization": f"Bearer key-of-{tenant}"}, ask(text)
    async with http.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


@pytest.mark.timeout(200)
async def test_crowd_of_connections_does_not_delay_another_tenant(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=8)
    async with serve(tmp_path, workers={"nano-0": worker}, more=POLICY) as served:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            assert await post(http, served, "ash", "was here before") == 200
            worker.hold()
            crowd = [asyncio.create_task(post(http, served, "oak", f"question {number}")) for number in range(CROWD)]
            await until(lambda: worker.num_live + len(served.gateway.queue) == CROWD, 60)
            asked = asyncio.create_task(post(http, served, "ash", "one more"))
            await until(lambda: worker.submitted[-1].cache_salt == "ash")
            worker.release()
            assert await asyncio.gather(*crowd, asked) == [200] * (CROWD + 1)


@pytest.mark.timeout(200)
async def test_slow_senders_delay_no_other_request(tmp_path: Path) -> None:
    """Heads and bodies that come byte by byte, and answers that nobody takes."""
    worker = fake("nano")
    async with serve(tmp_path, workers={"nano-0": worker}) as served:
        port = int(served.url.rsplit(":", 1)[1])
        body = json.dumps(ask("slow", stream=True)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        begun = (
            head,
            head + b"content-length: %d\r\n\r\n" % len(body),
            head + b"content-length: %d\r\n\r\n%b" % (len(body), body),
        )
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(150)]
        for number, (_, writer) in enumerate(slow):
            writer.write(begun[number % 3])
        for place in range(5):
            for number, (_, writer) in enumerate(slow):
                if number % 3 == 1:
                    writer.write(body[place : place + 1])
            assert (await served.chat())[0] == 200
        await until(lambda: worker.num_live == 0)
        for _, writer in slow:
            writer.close()
        assert (await served.chat())[0] == 200
