"""Answers of an upstream: chunks, usage, error bodies and headers."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.ledger.ledger import SqliteLedger
from tests.fake_upstream import FakeUpstream, Reply, chunks, delta
from tests.fuzz.oracles import KEYS, charges_are_bounded, nothing_ended, other_is_served
from tests.fuzz.rounds import Rounds
from tests.fuzz.values import INTS, TEXTS, changed_bytes, changed_json, json_value
from tests.served import ask, fake, serve

VENDOR = """
upstreams:
  vendor: {{url: '{url}', model: afar, tier: large, prices: {{input: 2.0, output: 10.0, cached: 0.5}}, retries: 0,
    failures: 1000000, timeouts: {{connect_s: 1.0, first_s: 2.0, idle_s: 2.0}}}}
"""


async def test_answers_of_an_upstream_harm_nothing(tmp_path: Path) -> None:
    path, rounds = tmp_path / "ledger.db", Rounds("answers of an upstream")
    async with FakeUpstream().serving() as upstream:
        more = KEYS + VENDOR.format(url=upstream.url)
        workers = {"pico-0": fake("pico")}
        async with serve(tmp_path, workers=workers, more=more, ledger=SqliteLedger(path)) as one:
            for rng in rounds:
                upstream.replies.append(_reply(rng))
                body = ask("x" * rng.choice((1, 100, 10_000)), model="afar", stream=rng.random() < 0.5)
                headers = {"authorization": "Bearer fuzzed"}
                async with one.http.post(f"{one.url}/v1/chat/completions", json=body, headers=headers) as answer:
                    said = await answer.text()
                    rounds.counts[f"status {answer.status}"] += 1
                assert "internal error in the gateway" not in said and answer.status != 500, (str(rounds), said)
                upstream.replies.clear()
                await asyncio.wait_for(other_is_served(one, model="small", max_tokens=1), 60.0)
            upstream.replies.clear()
            await nothing_ended(one)
            await charges_are_bounded(one, path)
            await other_is_served(one, model="afar")


def _reply(rng: random.Random) -> Reply:
    usage: Any = {
        "prompt_tokens": rng.choice(INTS),
        "completion_tokens": rng.choice(INTS),
        "prompt_tokens_details": rng.choice((None, {"cached_tokens": rng.choice(INTS)}, json_value(rng))),
        "cached_tokens": rng.choice(INTS),
    }
    said = [*chunks("Hi", " there", usage=usage), delta(tool_calls=[{"index": rng.choice(INTS), "function": {"name": "f"}}])]
    if rng.random() < 0.5:
        at = rng.randrange(len(said))
        said[at] = changed_json(rng, said[at])
    lines = b"".join(b"data: %b\n\n" % json.dumps(chunk, allow_nan=True).encode() for chunk in said) + b"data: [DONE]\n\n"
    body = changed_bytes(rng, lines) if rng.random() < 0.3 else lines
    status = rng.choice((200, 200, 200, 200, 400, 401, 404, 429, 500, 503))
    whole = rng.random() < 0.2
    if status != 200 or whole:
        chunk = said[0] if isinstance(said[0], dict) else {}
        body = json.dumps(changed_json(rng, {"error": {"message": rng.choice(TEXTS)}, **chunk, "usage": usage})).encode()
    kind = "application/json" if status != 200 or whole else "text/event-stream"
    headers = {"content-type": kind, "retry-after": rng.choice(("0", "1" * 400, "-1", "soon", "1e9"))}

    async def reply(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return reply
