"""Routes other than generation, and the one format of every error, the framework's included."""

import logging
from importlib import metadata
from typing import Any

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
from gateway.http.explain import explain_handler
from gateway.http.feedback import feedback_handler
from gateway.http.post_route import Headers, Posted, Read, admitted, counted, posted
from gateway.http.reports import report_handlers, run_report
from gateway.http.response import error_answer
from gateway.http.services import Services
from gateway.http.static import dashboard_handlers
from gateway.policy.routes import may_use
from gateway.policy.validate import AUTO

MAX_RUNS_LISTED = 100
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

log = logging.getLogger("headway.http")

AnyRequest = Request[Any, Any, Any]


def route_handlers(services: Services) -> list[HTTPRouteHandler | ASGIRouteHandler]:
    return [
        *(asgi(path, copy_scope=False)(endpoint) for path, endpoint in services.endpoints.items()),
        asgi("/v1/messages/count_tokens", copy_scope=False)(_count_tokens(services)),
        *_responses(services),
        asgi("/v1/headway/explain", copy_scope=False)(explain_handler(services)),
        asgi("/v1/headway/outcomes", copy_scope=False)(feedback_handler(services)),
        *_health(services),
        *_document(),
        *_readings(services),
        *report_handlers(services),
        *dashboard_handlers(),
    ]


def _health(services: Services) -> list[HTTPRouteHandler]:
    @get("/livez", media_type=MediaType.JSON, sync_to_thread=False)
    def livez() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", media_type=MediaType.JSON, sync_to_thread=False)
    def readyz() -> Response[dict[str, Any]]:
        """Return 503 until every local worker is up, while a background task has failed, and while the gateway stops. Failing
        spans are reported but delay no request."""
        missing = {"gateway": "stopping"} if services.pipeline.preparer.stopping else services.missing()
        body: dict[str, Any] = {"status": "not ready", "missing": missing} if missing else {"status": "ready"}
        if degraded := services.degraded():
            body["degraded"] = degraded
        return Response(body, status_code=503 if missing else 200)

    @get("/metrics", sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(services.metrics.render(), media_type=METRICS_TYPE)

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


def _readings(services: Services) -> list[HTTPRouteHandler]:
    @get("/v1/models", sync_to_thread=False)
    def models(request: AnyRequest) -> dict[str, Any]:
        """Return `auto`, the tiers and the models that this key may request."""
        tenant = counted(services, request.scope["headers"]).tenant
        names = [AUTO, *services.policy.tiers, *services.policy.tier_by_model()]
        allowed = [name for name in names if name == AUTO or may_use(services.policy, tenant=tenant, name=name)]
        return {"object": "list", "data": [_model(services, name) for name in allowed]}

    @get("/v1/models/{name:str}", sync_to_thread=False)
    def model(request: AnyRequest, name: FromPath[str]) -> dict[str, Any]:
        tenant = counted(services, request.scope["headers"]).tenant
        known = name in (AUTO, *services.policy.tiers, *services.policy.tier_by_model())
        if not known or (name != AUTO and not may_use(services.policy, tenant=tenant, name=name)):
            raise NotFoundException(f'there is no model "{name}"')
        return _model(services, name)

    @get("/v1/headway/runs", sync_to_thread=False)
    def runs(request: AnyRequest) -> dict[str, Any]:
        """Return this tenant's live runs, last seen first, with the field that identified each."""
        tenant = counted(services, request.scope["headers"]).tenant
        return {"runs": [run_report(run) for run in services.runs.recent(tenant, MAX_RUNS_LISTED)]}

    @get("/v1/headway/workers", sync_to_thread=False)
    def workers(request: AnyRequest) -> dict[str, Any]:
        counted(services, request.scope["headers"])
        upstreams = [upstream.health() for upstream in services.fleet.upstreams.values()]
        return {"workers": [_worker(services, name) for name in services.fleet.clients] + upstreams}

    return [models, model, runs, workers]


def _responses(services: Services) -> list[HTTPRouteHandler]:
    @get("/v1/responses/{response_id:str}", media_type=MediaType.JSON)
    async def stored(request: AnyRequest, response_id: FromPath[str]) -> Response[bytes]:
        """Return a stored response as it was sent."""
        tenant = counted(services, request.scope["headers"]).tenant
        response = await services.responses.get(tenant, response_id)
        return Response(response.body, media_type=MediaType.JSON)

    @delete("/v1/responses/{response_id:str}", status_code=200)
    async def forget(request: AnyRequest, response_id: FromPath[str]) -> dict[str, Any]:
        tenant = counted(services, request.scope["headers"]).tenant
        await services.responses.delete(tenant, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return [stored, forget]


def _count_tokens(services: Services) -> Posted:
    async def count_tokens(headers: Headers, read: Read) -> dict[str, int]:
        """Return the prompt tokens of a message, without running it."""
        caller = services.keys.caller_of(headers)
        with admitted(services, caller):
            body = await read()
            request = await services.parsing.run(caller.tenant, lambda: parse_count(body), num_bytes=len(body))
            return {"input_tokens": await services.pipeline.preparer.count(request, caller.tenant)}

    return posted(services, count_tokens, other_method="use POST with the body of a message", dialect=MessagesDialect())


def _model(services: Services, name: str) -> dict[str, Any]:
    policy = services.policy
    kind = "auto" if name == AUTO else "tier" if name in policy.tiers else "model"
    tier = policy.tier_by_model()[name] if kind == "model" else None
    return {"id": name, "object": "model", "created": 0, "owned_by": "headway", "kind": kind, "tier": tier}


def _worker(services: Services, name: str) -> dict[str, Any]:
    client = services.fleet.clients[name]
    local = services.fleet.supervisor.workers.get(name)
    worker = services.policy.workers[name]
    return {
        "name": name,
        "model": worker.model,
        "tier": services.policy.models[worker.model].tier,
        "device": worker.device,
        "up": client.healthy,
        "problem": "" if client.healthy else services.fleet.missing().get(name, client.problem),
        "restarts": local.restarts if local else 0,
        "usd_per_s": services.fleet.usd_per_s[name],
        "hello": client.hello,
        "load": client.load,
        "rates": services.fleet.predictors[name].rates._asdict(),
    }


def error_handlers() -> ExceptionHandlersMap:
    return {HeadwayError: _headway_error, HTTPException: _framework_error, Exception: _our_error}


def _headway_error(request: AnyRequest, error: HeadwayError) -> Response[bytes]:
    status, body, headers = error_answer(error)
    return Response(body, status_code=status, media_type=MediaType.JSON, headers={k.decode(): v.decode() for k, v in headers})


class _FrameworkError(HeadwayError):
    """An error of the framework. The instance's attributes replace those of the class, because the framework has many
    errors."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]
        self.code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")  # type: ignore[misc]
        self.type = "invalid_request_error" if status < 500 else "server_error"  # type: ignore[misc]


def _framework_error(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    message = error.detail
    if error.status_code == 404 and message == "Not Found":
        message = f"there is no endpoint at {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.url.path} does not support {request.method}"
    return _headway_error(request, _FrameworkError(message, error.status_code))


def _our_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Handle any other exception: one of the two places that catch everything. The response reveals no internals."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _headway_error(request, HeadwayError("internal error in the gateway: see its log"))
