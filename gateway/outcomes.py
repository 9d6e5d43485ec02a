"""`POST /v1/headway/outcomes`: how good an answer was, put beside it in the ledger."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from litestar.types import Scope

from gateway.accounting.labels import Labelled, OutcomeBody, label, parse_body
from gateway.accounting.rows import OutcomeRow
from gateway.asgi import Receive, Send, read_body, respond
from gateway.errors import HeadwayError, MethodNotAllowed, NotFound, Overloaded
from gateway.reply import send_error

if TYPE_CHECKING:
    from gateway.app import Gateway

WRITTEN_AFTER_S = 0.5
"""A row waits a moment for others before it is written: whoever labels at once is not too early."""


def outcomes(gateway: "Gateway") -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def post(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":  # type: ignore[typeddict-item]
                raise MethodNotAllowed("send an outcome with POST")
            headers = list(scope["headers"])
            tenant = gateway.keys.tenant_of(headers)
            known = gateway.policy.tenants.get(tenant)
            everybody = not gateway.keys.required or (known is not None and known.operator)
            body = parse_body(await read_body(headers, receive, max_bytes=gateway.policy.limits.max_body_bytes))
            row = await _row(gateway, body, None if everybody else tenant)
            if not gateway.ledger.record(row):
                raise Overloaded("the ledger has no room for it now: try again", retry_after_s=1.0)
            said = Labelled(decision=row.decision, model=row.model, tier=row.tier, score=row.score, trainable=bool(row.body))
            await respond(send, 200, msgspec.json.encode(said), [])
        except HeadwayError as error:
            await send_error(send, error)

    return post


async def _row(gateway: "Gateway", body: OutcomeBody, tenant: str | None) -> OutcomeRow:
    try:
        return await asyncio.to_thread(label, gateway.ledger.read, body, tenant=tenant, at=time.time())
    except NotFound:
        await asyncio.sleep(WRITTEN_AFTER_S)
        return await asyncio.to_thread(label, gateway.ledger.read, body, tenant=tenant, at=time.time())
