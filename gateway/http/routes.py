"""Every route but the chat itself, and the one shape of every error, the framework's included."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import MediaType, Request, Response, asgi, delete, get
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap

from gateway.api.messages import parse_count
from gateway.api.messages_dialect import MessagesDialect
from gateway.api.openapi import openapi_document
from gateway.api.openapi_page import openapi_page
from gateway.errors import HeadwayError
from gateway.http.auth import Caller
from gateway.http.feedback import feedback_handler
from gateway.http.post_route import Headers, Posted, Read, posted
from gateway.http.reports import report_handlers, run_report
from gateway.http.response import error_answer
from gateway.http.static import dashboard_handlers
from gateway.pipeline.active_request import RequestContext
from gateway.policy.routes import may_use
from gateway.policy.validate import AUTO
from gateway.routing.decision import Decision

if TYPE_CHECKING:
    from gateway.app import Gateway

MAX_RUNS_LISTED = 100
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

log = logging.getLogger("headway.http")

AnyRequest = Request[Any, Any, Any]


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """`advisory` lists the fields that were accepted and change nothing, `normalized` what was taken out of the prompt or put
    in order so that it begins as the one before; `run_source` the field that named the run."""

    decision: Decision
    run_id: str
    run_source: str
    advisory: tuple[str, ...]
    normalized: tuple[str, ...]


def route_handlers(gateway: "Gateway") -> list[HTTPRouteHandler | ASGIRouteHandler]:
    return [
        *(asgi(path, copy_scope=False)(endpoint) for path, endpoint in gateway.surfaces.items()),
        asgi("/v1/messages/count_tokens", copy_scope=False)(_count_tokens(gateway)),
        *_responses(gateway),
        asgi("/v1/headway/explain", copy_scope=False)(_explain(gateway)),
        asgi("/v1/headway/outcomes", copy_scope=False)(feedback_handler(gateway)),
        *_health(gateway),
        *_document(),
        *_readings(gateway),
        *report_handlers(gateway),
        *dashboard_handlers(),
    ]


def _health(gateway: "Gateway") -> list[HTTPRouteHandler]:
    @get("/livez", media_type=MediaType.JSON, sync_to_thread=False)
    def livez() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", media_type=MediaType.JSON, sync_to_thread=False)
    def readyz() -> Response[dict[str, Any]]:
        """503 until every local worker is up, and while the gateway stops."""
        missing = {"gateway": "stopping"} if gateway.pipeline.stopping else gateway.fleet.missing()
        body = {"status": "not ready", "missing": missing} if missing else {"status": "ready"}
        return Response(body, status_code=503 if missing else 200)

    @get("/metrics", sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(gateway.metrics.render(), media_type=METRICS_TYPE)

    return [livez, readyz, metrics]


def _document() -> list[HTTPRouteHandler]:
    document = openapi_document(metadata.version("headway"))
    encoded, page = msgspec.json.encode(document), openapi_page(document)

    @get("/openapi.json", media_type=MediaType.JSON, sync_to_thread=False)
    def openapi() -> Response[bytes]:
        return Response(encoded, media_type=MediaType.JSON)

    @get("/docs", sync_to_thread=False)
    def docs() -> Response[bytes]:
        return Response(page, media_type="text/html; charset=utf-8")

    return [openapi, docs]


def _readings(gateway: "Gateway") -> list[HTTPRouteHandler]:
    @get("/v1/models", sync_to_thread=False)
    def models(request: AnyRequest) -> dict[str, Any]:
        """`auto`, the tiers and the models that this key may ask for."""
        tenant = gateway.keys.tenant_of(request.scope["headers"])
        names = [AUTO, *gateway.policy.tiers, *gateway.policy.tier_by_model()]
        allowed = [name for name in names if name == AUTO or may_use(gateway.policy, tenant=tenant, name=name)]
        return {"object": "list", "data": [_model(gateway, name) for name in allowed]}

    @get("/v1/models/{name:str}", sync_to_thread=False)
    def model(request: AnyRequest, name: FromPath[str]) -> dict[str, Any]:
        tenant = gateway.keys.tenant_of(request.scope["headers"])
        known = name in (AUTO, *gateway.policy.tiers, *gateway.policy.tier_by_model())
        if not known or (name != AUTO and not may_use(gateway.policy, tenant=tenant, name=name)):
            raise NotFoundException(f'there is no model "{name}"')
        return _model(gateway, name)

    @get("/v1/headway/runs", sync_to_thread=False)
    def runs(request: AnyRequest) -> dict[str, Any]:
        """This tenant's live runs, the one seen last first: what was understood, and from which field."""
        tenant = gateway.keys.tenant_of(request.scope["headers"])
        return {"runs": [run_report(run) for run in gateway.runs.recent(tenant, MAX_RUNS_LISTED)]}

    @get("/v1/headway/workers", sync_to_thread=False)
    def workers(request: AnyRequest) -> dict[str, Any]:
        gateway.keys.tenant_of(request.scope["headers"])
        upstreams = [upstream.health() for upstream in gateway.fleet.upstreams.values()]
        return {"workers": [_worker(gateway, name) for name in gateway.fleet.clients] + upstreams}

    return [models, model, runs, workers]


def _responses(gateway: "Gateway") -> list[HTTPRouteHandler]:
    @get("/v1/responses/{response_id:str}", media_type=MediaType.JSON)
    async def stored(request: AnyRequest, response_id: FromPath[str]) -> Response[bytes]:
        """A response that was stored, as it was answered."""
        tenant = gateway.keys.tenant_of(request.scope["headers"])
        found = await gateway.responses.get(tenant, response_id)
        return Response(found.body, media_type=MediaType.JSON)

    @delete("/v1/responses/{response_id:str}", status_code=200)
    async def forget(request: AnyRequest, response_id: FromPath[str]) -> dict[str, Any]:
        tenant = gateway.keys.tenant_of(request.scope["headers"])
        await gateway.responses.delete(tenant, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return [stored, forget]


def _count_tokens(gateway: "Gateway") -> Posted:
    async def count_tokens(headers: Headers, read: Read) -> dict[str, int]:
        """Prompt tokens of a message, without running it."""
        caller = gateway.keys.caller_of(headers)
        with _admitted(gateway, caller):
            return {"input_tokens": await gateway.pipeline.count(parse_count(await read()), caller.tenant)}

    return posted(gateway, count_tokens, other_method="ask with POST and the body of a message", dialect=MessagesDialect())


def _explain(gateway: "Gateway") -> Posted:
    async def explain(headers: Headers, read: Read) -> Explained:
        """The decision that a chat request would get, without running it."""
        caller = gateway.keys.caller_of(headers)
        with _admitted(gateway, caller):
            body = await read()
            context = RequestContext.now(headers, "/v1/headway/explain")
            context.key_id = caller.key_id
            request, identity, decision = await gateway.pipeline.explain(body, context, caller.tenant)
        return Explained(
            decision=decision,
            run_id=identity.run.partition(":")[2],
            run_source=identity.source,
            advisory=request.advisory,
            normalized=request.normalized,
        )

    return posted(gateway, explain, other_method="ask with POST and the body of a chat completion")


@contextmanager
def _admitted(gateway: "Gateway", caller: Caller) -> Iterator[None]:
    """What reads a prompt is work as well, and counts as a request. Raises RateLimited."""
    rate_limit_pass = gateway.rates.enter(caller.limited, time.monotonic())
    try:
        yield
    finally:
        gateway.rates.leave(rate_limit_pass, time.monotonic())


def _model(gateway: "Gateway", name: str) -> dict[str, Any]:
    policy = gateway.policy
    kind = "auto" if name == AUTO else "tier" if name in policy.tiers else "model"
    tier = policy.tier_by_model()[name] if kind == "model" else None
    return {"id": name, "object": "model", "created": 0, "owned_by": "headway", "kind": kind, "tier": tier}


def _worker(gateway: "Gateway", name: str) -> dict[str, Any]:
    client = gateway.fleet.clients[name]
    local = gateway.fleet.supervisor.workers.get(name)
    worker = gateway.policy.workers[name]
    return {
        "name": name,
        "model": worker.model,
        "tier": gateway.policy.models[worker.model].tier,
        "device": worker.device,
        "up": client.healthy,
        "problem": "" if client.healthy else gateway.fleet.missing().get(name, client.problem),
        "restarts": local.restarts if local else 0,
        "usd_per_s": gateway.fleet.usd_per_s[name],
        "hello": client.hello,
        "load": client.load,
        "rates": gateway.fleet.predictors[name].rates._asdict(),
    }


def error_handlers() -> ExceptionHandlersMap:
    return {HeadwayError: _headway_error, HTTPException: _framework_error, Exception: _our_error}


def _headway_error(request: AnyRequest, error: HeadwayError) -> Response[bytes]:
    status, body, headers = error_answer(error)
    return Response(body, status_code=status, media_type=MediaType.JSON, headers={k.decode(): v.decode() for k, v in headers})


class _FrameworkError(HeadwayError):
    """An instance's own answer over the class's: the framework's errors are many."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]
        self.code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")  # type: ignore[misc]
        self.type = "invalid_request_error" if status < 500 else "server_error"  # type: ignore[misc]


def _framework_error(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    message = error.detail
    if error.status_code == 404 and message == "Not Found":
        message = f"there is nothing at {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}"
    return _headway_error(request, _FrameworkError(message, error.status_code))


def _our_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """One of the two places that catch everything: what the caller sees says nothing of our insides."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _headway_error(request, HeadwayError("something went wrong in the gateway: its log says what"))
