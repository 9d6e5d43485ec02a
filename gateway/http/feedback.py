"""`POST /v1/headway/outcomes`: stores a label of an answer's quality in the ledger."""

import asyncio
import time

from gateway.errors import NotFound, Overloaded
from gateway.http.post_route import Headers, Posted, Read, admitted, posted
from gateway.http.services import Services
from gateway.ledger.outcomes import LabelledRequest, OutcomeBody, label, parse_body
from gateway.ledger.rows import OutcomeRow

WRITTEN_AFTER_S = 0.5
"""Seconds to wait before looking again for the request's row: the ledger writes rows in batches, so a prompt label may come
first."""


def feedback_handler(services: Services) -> Posted:
    async def labelled(headers: Headers, read: Read) -> LabelledRequest:
        caller = services.keys.caller_of(headers)
        known = services.policy.tenants.get(caller.tenant)
        everybody = not services.keys.required or (known is not None and known.operator)
        with admitted(services, caller):
            received = await read()
            body = await services.parsing.run(caller.tenant, lambda: parse_body(received), num_bytes=len(received))
            row = await _row(services, body, None if everybody else caller.tenant)
        if not services.ledger.record(row):
            raise Overloaded("the ledger's queue is full: try again", retry_after_s=1.0)
        return LabelledRequest(decision=row.decision, model=row.model, tier=row.tier, score=row.score, trainable=bool(row.body))

    return posted(services, labelled, other_method="use POST to send an outcome")


async def _row(services: Services, body: OutcomeBody, tenant: str | None) -> OutcomeRow:
    try:
        return await asyncio.to_thread(label, services.ledger.read, body, tenant=tenant, at=time.time())
    except NotFound:
        await asyncio.sleep(WRITTEN_AFTER_S)
        return await asyncio.to_thread(label, services.ledger.read, body, tenant=tenant, at=time.time())
