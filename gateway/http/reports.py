"""Reports of the ledger as JSON under /v1/headway, for the dashboard.

An operator sees all tenants; any other tenant sees its own runs and dollars. Without keys the development tenant is the
operator.
"""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.errors import BadRequest, Forbidden
from gateway.http.post_route import admitted, counted
from gateway.http.services import Services
from gateway.ledger import history, slo_report, spending
from gateway.ledger.ledger import ReportTooLong
from gateway.ledger.scope import Read, Scope
from gateway.ledger.summary import summary
from gateway.metering.cost import COUNTERFACTUAL_METHOD, SAVED_METHOD
from gateway.runs.identity import public_id
from gateway.runs.registry import Run

MAX_HOURS = 24.0 * 366
DEFAULT_HOURS = 24.0
MAX_RUNS = 500
REQUEST_S = 0.1
"""Seconds of reading the ledger that count as one request in the rate limits."""

AnyRequest = Request[Any, Any, Any]
Got = TypeVar("Got")


class Caller(NamedTuple):
    tenant: str
    operator: bool

    def scope(self, hours: float) -> Scope:
        now = time.time()
        return Scope(None if self.operator else self.tenant, now - 3600.0 * hours, now + 1.0)


class Turn:
    """One report: its caller, and the seconds that it has read."""

    def __init__(self, caller: Caller, services: Services) -> None:
        self.caller, self.read_s = caller, 0.0
        self._services = services

    async def read(self, report: Callable[[Read], Got]) -> Got:
        """Read the ledger in the tenant's turn. Raises Overloaded, or BadRequest if it takes too long."""

        def timed() -> Got:
            began = time.monotonic()
            try:
                return report(self._services.ledger.report)
            finally:
                self.read_s += time.monotonic() - began

        try:
            return await self._services.reports.run(self.caller.tenant, timed)
        except ReportTooLong as error:
            raise BadRequest(str(error), param="hours") from error


class _Reader:
    """Common part of all reports: authenticates, counts towards rate limits, and reads the ledger in the tenant's turn."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def caller(self, request: AnyRequest) -> Caller:
        """Return the caller of a report from memory, and count it. Raises Unauthorized or RateLimited."""
        return self._known(counted(self.services, request.scope["headers"]).tenant)

    @asynccontextmanager
    async def turn(self, request: AnyRequest) -> AsyncIterator[Turn]:
        """Yield the caller of a report from the ledger, and how to read. It counts as a request, and as one more for each
        REQUEST_S of reading. Raises Unauthorized or RateLimited."""
        party = self.services.keys.caller_of(request.scope["headers"])
        with admitted(self.services, party) as rate_limit_pass:
            turn = Turn(self._known(party.tenant), self.services)
            try:
                yield turn
            finally:
                self.services.rate_limits.charge(rate_limit_pass, int(turn.read_s / REQUEST_S))

    def _known(self, tenant: str) -> Caller:
        known = self.services.policy.tenants.get(tenant)
        return Caller(tenant, not self.services.keys.required or (known is not None and known.operator))


def report_handlers(services: Services) -> list[HTTPRouteHandler]:
    reader = _Reader(services)
    return [*_about(reader), *_runs(reader), *_sums(reader)]


def _about(reader: _Reader) -> list[HTTPRouteHandler]:
    services = reader.services

    @get("/v1/headway/whoami", sync_to_thread=False)
    def whoami(request: AnyRequest) -> dict[str, Any]:
        """Return the tenant of the key, and what it may see."""
        caller = reader.caller(request)
        keys = services.keys.required
        return {"tenant": caller.tenant, "operator": caller.operator, "keys": keys, "version": _version()}

    @get("/v1/headway/live", sync_to_thread=False)
    def live(request: AnyRequest) -> Response[bytes]:
        """Return the samples of the last minutes."""
        reader.caller(request)
        return _json(
            {
                "at": time.time(),
                "queue": len(services.queue),
                "runs": len(services.runs),
                "samples": [*services.live_samples.samples],
            }
        )

    @get("/v1/headway/policy")
    async def policy(request: AnyRequest) -> Response[bytes]:
        """Return the policy in force and earlier ones. Operators only."""
        async with reader.turn(request) as turn:
            if not turn.caller.operator:
                raise Forbidden(
                    f"tenant {turn.caller.tenant} is no operator: set `tenants: {{NAME: {{operator: true}}}}` in the policy"
                )
            changes = await turn.read(history.policies)
        return _json({"policies": changes})

    return [whoami, live, policy]


def _runs(reader: _Reader) -> list[HTTPRouteHandler]:
    @get("/v1/headway/history")
    async def past_runs(request: AnyRequest) -> Response[bytes]:
        """Return the last runs, live ones marked."""
        async with reader.turn(request) as turn:
            scope = turn.caller.scope(_hours(request))
            past = await turn.read(lambda read: history.runs(read, scope, limit=MAX_RUNS))
        live = {(run.tenant, run.public_id) for run in reader.services.runs.all()} if past else set()
        marked = [msgspec.structs.replace(run, live=(run.tenant, run.run) in live) for run in past]
        return _json({"runs": marked, "limit": MAX_RUNS})

    # One route for both, as ids may contain slashes.
    @get("/v1/headway/runs/{run_id:path}")
    async def run(request: AnyRequest, run_id: FromPath[str]) -> Response[bytes]:
        """Return the cost so far and the cache reports of the last turns of a live run of this tenant.

        Under `/turns`, return every request of a run in the ledger; an operator may select `?tenant=NAME`.
        """
        name = run_id.removeprefix("/")
        if name.endswith("/turns"):
            async with reader.turn(request) as turn:
                return await _turns(turn, name.removesuffix("/turns"), request.query_params.get("tenant"))
        caller = reader.caller(request)
        live_run = reader.services.runs.get(f"{caller.tenant}:{name}")
        if live_run is None:
            raise NotFoundException(f'there is no run "{name}": it belongs to another tenant, or has ended')
        cache = {public_id(name): list(chain.reports) for name, chain in live_run.chains.items()}
        return _json(run_report(live_run) | {"cache": cache})

    @get("/v1/headway/decisions/{name:str}")
    async def decision(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
        async with reader.turn(request) as turn:
            tenant = None if turn.caller.operator else turn.caller.tenant
            body = await turn.read(lambda read: history.decision(read, tenant, name))
        if body is None:
            raise NotFoundException(f'the ledger has no decision "{name}": it belongs to another tenant, or is too old')
        return Response(body, media_type="application/json")

    return [past_runs, run, decision]


async def _turns(turn: Turn, name: str, asked: str | None) -> Response[bytes]:
    tenant = asked if asked is not None and turn.caller.operator else turn.caller.tenant
    turns = await turn.read(lambda read: history.turns(read, tenant, name))
    if not turns:
        raise NotFoundException(f'the ledger has no run "{name}" of {tenant}: it belongs to another tenant, or is too old')
    return _json({"run": name, "tenant": tenant, "turns": turns})


def run_report(run: Run) -> dict[str, Any]:
    return {
        "id": run.public_id,
        "source": run.source,
        "turns": run.turns,
        "chains": len(run.chains),
        "prompt_tokens": run.prompt_tokens,
        "cached_tokens": run.cached_tokens,
        "output_tokens": run.output_tokens,
        "device_s": run.device_s,
        "cost_usd": run.usd,
        "saved_usd": run.saved_usd,
        "counterfactual_usd": run.all_large_usd,
    }


def _sums(reader: _Reader) -> list[HTTPRouteHandler]:
    @get("/v1/headway/costs")
    async def costs(request: AnyRequest) -> Response[bytes]:
        """Return dollars `?by=tenant|model|run|day` and over time. Idle cost is for operators only."""
        by = request.query_params.get("by", "model")

        def report(read: Read, scope: Scope, by: spending.By, *, operator: bool) -> dict[str, Any]:
            return {
                "by": by,
                "lines": spending.spending(read, scope, by),
                "idle": spending.idle(read, scope) if operator else [],
                "series": spending.spending_over_time(read, narrow := scope.narrowed(read), with_idle=operator),
                "step_s": narrow.step_s,
            }

        methods = {"saved": SAVED_METHOD, "all_large": COUNTERFACTUAL_METHOD}
        async with reader.turn(request) as turn:
            if by not in spending.BYS:
                raise BadRequest(f"by is {by!r}: it must be one of {', '.join(spending.BYS)}", param="by")
            scope, operator = turn.caller.scope(_hours(request)), turn.caller.operator
            lines = await turn.read(partial(report, scope=scope, by=by, operator=operator))
        return _json({**lines, "methods": methods})

    @get("/v1/headway/summary")
    async def overview(request: AnyRequest) -> Response[bytes]:
        """Return cost of runs, attainment by SLO class and notable requests."""
        async with reader.turn(request) as turn:
            scope = turn.caller.scope(_hours(request))
            return _json(await turn.read(lambda read: summary(read, scope)))

    @get("/v1/headway/slo")
    async def slo(request: AnyRequest) -> Response[bytes]:
        """Return attainment and burn rate by class, percentiles over time and rejections by reason."""

        def report(read: Read, scope: Scope) -> dict[str, Any]:
            return {
                "classes": slo_report.attainment(read, scope),
                "series": slo_report.attainment_over_time(read, narrow := scope.narrowed(read)),
                "step_s": narrow.step_s,
                "rejections": slo_report.rejections(read, scope),
            }

        classes = reader.services.policy.slo
        async with reader.turn(request) as turn:
            scope = turn.caller.scope(_hours(request))
            attained = await turn.read(lambda read: report(read, scope))
        return _json({**attained, "slo": classes, "objective": slo_report.OBJECTIVE})

    return [costs, overview, slo]


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
