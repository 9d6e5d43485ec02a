"""Bodies from the schemas of the OpenAPI document, whole and damaged, and the parameters of every other operation."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.api.openapi import openapi_document
from gateway.ledger.ledger import SqliteLedger
from tests.fuzz.oracles import KEYS, MAX_BODY_BYTES, charges_are_bounded, nothing_ended, other_is_served
from tests.fuzz.rounds import Rounds
from tests.fuzz.values import TEXTS, changed_bytes, changed_json, of_schema
from tests.served import Served, ask, serve

DOCUMENT = openapi_document("0")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
HEADERS = {"authorization": "Bearer fuzzed", "content-type": "application/json"}


def _operations() -> list[tuple[str, str, Any]]:
    found = []
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody")
            found.append((method, path, body and body["content"]["application/json"]["schema"]))
    return found


async def test_bodies_of_every_operation_harm_nothing(tmp_path: Path) -> None:
    path, rounds, operations = tmp_path / "ledger.db", Rounds("HTTP bodies"), _operations()
    with_body = [operation for operation in operations if operation[2]]
    async with serve(tmp_path, more=KEYS, ledger=SqliteLedger(path)) as one:
        for rng in rounds:
            method, route, schema = rng.choice(operations if rng.random() < 0.3 else with_body)
            status, said = await asyncio.wait_for(_send(one, rng, method, route, schema), 60.0)
            rounds.counts[f"status {status}"] += 1
            assert status < 500 or (status == 503 and route != "/livez"), (str(rounds), method, route, status, said)
            if rounds.number % 10 == 0:
                await other_is_served(one, max_tokens=1)
        await nothing_ended(one)
        await charges_are_bounded(one, path)


async def _send(one: Served, rng: random.Random, method: str, route: str, schema: Any) -> tuple[int, str]:
    for name in ("response_id", "name", "run_id"):
        route = route.replace(f"{{{name}}}", quote(rng.choice(TEXTS)[:200] or "x", safe=""))
    query = {
        key: rng.choice((*TEXTS[:8], "1", "1e308", "nan", "-1")) for key in ("hours", "by", "tenant") if rng.random() < 0.2
    }
    data = _body(rng, schema) if schema else b""
    async with one.http.request(
        method, f"{one.url}{route}", data=data, headers=HEADERS, params=query, allow_redirects=False
    ) as answer:
        return answer.status, (await answer.text())[:300]


def _body(rng: random.Random, schema: Any) -> bytes:
    value = of_schema(rng, schema, SCHEMAS)
    if isinstance(value, dict) and rng.random() < 0.7:  # most get past the first check
        value |= {"model": rng.choice(("auto", "small", "large")), "max_tokens": rng.choice((1, 3))}
        if "messages" in value and rng.random() < 0.6:
            value["messages"] = ask()["messages"]
    if rng.random() < 0.3:
        value = changed_json(rng, value)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    return (changed_bytes(rng, data) if rng.random() < 0.15 else data)[:MAX_BODY_BYTES]
