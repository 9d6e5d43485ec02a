"""What the dashboard reads, as JSON under /v1/headway: the ledger's reports for whoever the key belongs to.

An operator sees everybody (without keys everybody is one); any other tenant sees its own runs and dollars.
"""

import asyncio
import math
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.errors import BadRequest, Forbidden
from gateway.ledger import history, spending
from gateway.ledger import slo_report as promises
from gateway.ledger.scope import Read, Scope
from gateway.ledger.summary import summary
from gateway.metering.cost import COUNTERFACTUAL_METHOD, SAVED_METHOD

if TYPE_CHECKING:
    from gateway.app import Gateway

MAX_HOURS = 24.0 * 366
DEFAULT_HOURS = 24.0
MAX_RUNS = 500

AnyRequest = Request[Any, Any, Any]
Got = TypeVar("Got")


class Caller(NamedTuple):
    tenant: str
    operator: bool

    def scope(self, hours: float) -> Scope:
        now = time.time()
        return Scope(None if self.operator else self.tenant, now - 3600.0 * hours, now + 1.0)


class _Reader:
    """Every reading starts here: who asks, and the ledger off the event loop."""

    def __init__(self, gateway: "Gateway") -> None:
        self.gateway = gateway

    def caller(self, request: AnyRequest) -> Caller:
        """Raises Unauthorized."""
        tenant = self.gateway.keys.tenant_of(request.scope["headers"])
        known = self.gateway.policy.tenants.get(tenant)
        return Caller(tenant, not self.gateway.keys.required or (known is not None and known.operator))

    def operator(self, request: AnyRequest) -> Caller:
        """Raises Unauthorized or Forbidden."""
        caller = self.caller(request)
        if not caller.operator:
            raise Forbidden(f"tenant {caller.tenant} is no operator: `tenants: {{NAME: {{operator: true}}}}` in the policy")
        return caller

    async def read(self, report: Callable[[Read], Got]) -> Got:
        return await asyncio.to_thread(report, self.gateway.ledger.read)


def report_handlers(gateway: "Gateway") -> list[HTTPRouteHandler]:
    reader = _Reader(gateway)
    return [*_about(reader), *_runs(reader), *_sums(reader)]


def _about(reader: _Reader) -> list[HTTPRouteHandler]:
    gateway = reader.gateway

    @get("/v1/headway/me", sync_to_thread=False)
    def me(request: AnyRequest) -> dict[str, Any]:
        """Who the key is, and what it may see."""
        caller = reader.caller(request)
        keys = gateway.keys.required
        return {"tenant": caller.tenant, "operator": caller.operator, "keys": keys, "version": _version()}

    @get("/v1/headway/now", sync_to_thread=False)
    def now(request: AnyRequest) -> Response[bytes]:
        """The last minutes of the fleet, in samples."""
        reader.caller(request)
        return _json(
            {
                "at": time.time(),
                "queue": len(gateway.queue),
                "runs": len(gateway.runs),
                "samples": [*gateway.live_samples.samples],
            }
        )

    @get("/v1/headway/policy")
    async def policy(request: AnyRequest) -> Response[bytes]:
        """The policy in force and those before it; only an operator sees it."""
        reader.operator(request)
        changes = await reader.read(history.policies)
        return _json({"policies": changes})

    return [me, now, policy]


def _runs(reader: _Reader) -> list[HTTPRouteHandler]:
    @get("/v1/headway/history")
    async def past_runs(request: AnyRequest) -> Response[bytes]:
        """The last runs, live ones marked."""
        scope = reader.caller(request).scope(_hours(request))
        found = await reader.read(lambda read: history.runs(read, scope, limit=MAX_RUNS))
        live = {(run.tenant, run.public_id) for run in reader.gateway.runs.all()} if found else set()
        marked = [msgspec.structs.replace(run, live=(run.tenant, run.run) in live) for run in found]
        return _json({"runs": marked, "limit": MAX_RUNS})

    @get("/v1/headway/turns")
    async def turns(request: AnyRequest) -> Response[bytes]:
        """Every request of one run: `?run=ID`, for an operator also `&tenant=NAME`."""
        caller = reader.caller(request)
        name = request.query_params.get("run", "")
        tenant = request.query_params.get("tenant", caller.tenant) if caller.operator else caller.tenant
        found = await reader.read(lambda read: history.turns(read, tenant, name))
        if not found:
            raise NotFoundException(f'the ledger has no run "{name}" of {tenant}: it is not yours, or too old')
        return _json({"run": name, "tenant": tenant, "turns": found})

    @get("/v1/headway/decisions/{name:str}")
    async def decision(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
        caller = reader.caller(request)
        body = await reader.read(lambda read: history.decision(read, None if caller.operator else caller.tenant, name))
        if body is None:
            raise NotFoundException(f'the ledger has no decision "{name}": it is not yours, or too old')
        return Response(body, media_type="application/json")

    return [past_runs, turns, decision]


def _sums(reader: _Reader) -> list[HTTPRouteHandler]:
    @get("/v1/headway/money")
    async def money(request: AnyRequest) -> Response[bytes]:
        """Dollars `?by=tenant|model|run|day` and over time; what stood idle only for an operator."""
        caller = reader.caller(request)
        by = request.query_params.get("by", "model")
        if by not in spending.BYS:
            raise BadRequest(f"by is {by!r}: it must be one of {', '.join(spending.BYS)}", param="by")
        scope = caller.scope(_hours(request))

        def report(read: Read) -> dict[str, Any]:
            return {
                "by": by,
                "lines": spending.spending(read, scope, by),
                "idle": spending.idle(read, scope) if caller.operator else [],
                "series": spending.spending_over_time(read, narrow := scope.narrowed(read), with_idle=caller.operator),
                "step_s": narrow.step_s,
            }

        methods = {"saved": SAVED_METHOD, "all_large": COUNTERFACTUAL_METHOD}
        return _json({**await reader.read(report), "methods": methods})

    @get("/v1/headway/attention")
    async def worth_a_look(request: AnyRequest) -> Response[bytes]:
        """At first sight: what runs cost, which promise is in danger, which requests to open."""
        scope = reader.caller(request).scope(_hours(request))
        return _json(await reader.read(lambda read: summary(read, scope)))

    @get("/v1/headway/promises")
    async def kept(request: AnyRequest) -> Response[bytes]:
        """Attainment and burn by class, percentiles over time, refusals by reason."""
        scope = reader.caller(request).scope(_hours(request))

        def report(read: Read) -> dict[str, Any]:
            return {
                "classes": promises.attainment(read, scope),
                "series": promises.attainment_over_time(read, narrow := scope.narrowed(read)),
                "step_s": narrow.step_s,
                "refused": promises.rejections(read, scope),
            }

        slo = reader.gateway.policy.slo
        return _json({**await reader.read(report), "slo": slo, "objective": promises.OBJECTIVE})

    return [money, worth_a_look, kept]


def _hours(request: AnyRequest) -> float:
    text = request.query_params.get("hours", str(DEFAULT_HOURS))
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= MAX_HOURS:
        raise BadRequest(f"hours is {text!r}: it must be above 0 and at most {MAX_HOURS:.0f}", param="hours")
    return hours


def _json(value: Any) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"cache-control": "no-store"})


def _version() -> str:
    try:
        return version("headway")
    except PackageNotFoundError:
        return ""
