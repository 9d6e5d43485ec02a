"""Limits of keys and tenants over HTTP: who is over one is told whose it is and when to come back, and aborts give back."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openai import RateLimitError

from tests.served import Served, ask, fake, serve, until


def keys(**limits: str) -> str:
    """A tenant `acme`, and a key for each name that is itself."""
    lines = [
        f"  {name}: {{tenant: acme, hash: 'sha256:{hashlib.sha256(name.encode()).hexdigest()}', limits: {{{text}}}}}"
        for name, text in limits.items()
        if name != "tenant"
    ]
    return f"tenants: {{acme: {{keys: [plain], limits: {{{limits.get('tenant', '')}}}}}}}\nkeys:\n" + "\n".join(lines)


async def post(
    served: Served, key: str, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    async with served.http.post(served.url + path, json=body, headers={"x-api-key": key}) as answer:
        return answer.status, await answer.json(), answer.headers


async def test_requests_count_for_key_and_tenant_and_headers_report_it(tmp_path: Path) -> None:
    more = keys(tenant="requests_per_minute: 4", ci="requests_per_minute: 2")
    async with serve(tmp_path, more=more) as served:
        status, _, headers = await post(served, "ci", ask())
        assert status == 200
        assert {name: headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining")} == {
            "limit": "2",
            "remaining": "1",
        }
        assert headers["x-ratelimit-reset-requests"].startswith(("29.", "30s"))
        assert "x-ratelimit-limit-tokens" not in headers
        assert (await post(served, "ci", {"model": 7}))[0] == 400
        status, body, headers = await post(served, "ci", ask())
        assert (status, body["error"]["code"], body["error"]["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
        assert 'requests_per_minute of key "ci", which is 2' in body["error"]["message"]
        assert 25 <= int(headers["retry-after"]) <= 30
        assert 25_000 <= int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
        assert (headers["x-ratelimit-remaining-requests"], headers["x-should-retry"]) == ("0", "true")
        assert (await post(served, "plain", ask(), "/v1/headway/explain"))[0] == 200
        assert (await post(served, "plain", ask(stop_sequences=["x"]), "/v1/messages/count_tokens"))[0] == 400
        status, body, _ = await post(served, "plain", ask(), "/v1/messages")
        assert (status, body["error"]["type"]) == (429, "rate_limit_error")
        assert 'tenant "acme"' in body["error"]["message"]
        assert (await post(served, "plain", ask(), "/v1/headway/explain"))[0] == 429
        served.gateway.rates.check()


async def test_tokens_are_reserved_while_running_and_an_abort_releases_the_unused(tmp_path: Path) -> None:
    worker = fake("nano")
    more = keys(ci="tokens_per_minute: 300", small="tokens_per_minute: 10")
    async with serve(tmp_path, workers={"nano-0": worker}, more=more) as served:
        worker.hold()
        asked = asyncio.create_task(post(served, "ci", ask(max_tokens=200)))
        await until(lambda: worker.num_live == 1)
        status, body, headers = await post(served, "ci", ask(max_tokens=200))
        assert status == 429
        assert 'tokens_per_minute of key "ci", which is 300' in body["error"]["message"]
        assert int(headers["x-ratelimit-remaining-tokens"]) < 100
        assert headers["x-ratelimit-limit-tokens"] == "300"
        asked.cancel()
        await until(lambda: all(sequence.aborted for sequence in worker._running))
        worker.release()
        await until(lambda: worker.num_live == 0 and not served.gateway.rates._accounts['key "ci"'].num_open)
        status, body, headers = await post(served, "ci", ask(max_tokens=200))
        assert status == 200
        left = 300 - body["usage"]["total_tokens"]
        assert abs(int(headers["x-ratelimit-remaining-tokens"]) - left) <= 60
        status, body, headers = await post(served, "small", ask(max_tokens=200))
        assert (status, "ask for fewer" in body["error"]["message"]) == (429, True)
        assert ("retry-after" in headers, headers["x-should-retry"]) == (False, "false")
        served.gateway.rates.check()


@pytest.mark.parametrize("stream", [False, True])
async def test_hundred_requests_at_once_keep_the_concurrency_limit(tmp_path: Path, stream: bool) -> None:
    worker = fake("nano")
    async with serve(tmp_path, workers={"nano-0": worker}, more=keys(ci="concurrent_requests: 7")) as served:
        worker.hold()

        async def one() -> int:
            headers = {"x-api-key": "ci"}
            async with served.http.post(
                f"{served.url}/v1/completions", json={"model": "auto", "prompt": "hi", "stream": stream}, headers=headers
            ) as answer:
                await answer.read()
                return answer.status

        asked = [asyncio.create_task(one()) for _ in range(100)]
        await until(lambda: sum(task.done() for task in asked) == 93 and worker.num_live == 7)
        worker.release()
        statuses = await asyncio.gather(*asked)
        assert (statuses.count(200), statuses.count(429)) == (7, 93)
        assert await one() == 200


async def test_official_client_raises_its_rate_limit_error(tmp_path: Path) -> None:
    async with serve(tmp_path, more=keys(ci="requests_per_minute: 1")) as served, served.client("ci") as client:
        raw = await client.chat.completions.with_raw_response.create(**ask())
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        with pytest.raises(RateLimitError, match="requests_per_minute") as refused:
            await client.chat.completions.create(**ask())
        assert refused.value.code == "rate_limit_exceeded"
