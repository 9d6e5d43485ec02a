"""`POST /v1/headway/explain`: the decision that a chat request would get, without running it."""

from functools import partial

import msgspec

from gateway.api.chat import parse_chat
from gateway.api.chat_dialect import DEFAULT_MAX_TOKENS
from gateway.http.post_route import Headers, Posted, Read, admitted, posted
from gateway.http.services import Services
from gateway.pipeline.active_request import RequestContext
from gateway.routing.decision import Decision


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """Response of explain.

    `advisory` lists accepted fields that change nothing. `normalized` lists what was removed or reordered so that the prompt
    shares a longer prefix. `run_source` is the field that named the run.
    """

    decision: Decision
    run_id: str
    run_source: str
    advisory: tuple[str, ...]
    normalized: tuple[str, ...]


def explain_handler(services: Services) -> Posted:
    async def explain(headers: Headers, read: Read) -> Explained:
        """Return the decision that a chat request would get, without running it."""
        caller = services.keys.caller_of(headers)
        with admitted(services, caller):
            body = await read()
            parse = partial(parse_chat, body, max_tokens_default=DEFAULT_MAX_TOKENS)
            request = await services.parsing.run(caller.tenant, parse, num_bytes=len(body))
            context = RequestContext.now(headers, "/v1/headway/explain")
            context.key_id = caller.key_id
            request, identity, decision = await services.pipeline.preparer.explain(request, context, caller.tenant)
        return Explained(
            decision=decision,
            run_id=identity.run.partition(":")[2],
            run_source=identity.source,
            advisory=request.advisory,
            normalized=request.normalized,
        )

    return posted(services, explain, other_method="use POST with the body of a chat completion")
