"""What a caller is promised: the route's SLO class, or what the request asks for within the tenant's rights."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.errors import BadRequest, Forbidden, UnsupportedParameter
from gateway.policy.schema import Policy, Route, Slo
from gateway.request import ServiceTier

CLASS_HEADER = "x-headway-slo"
TTFT_HEADER = "x-llm-d-slo-ttft-ms"


class _RequestedSlo(NamedTuple):
    """A class, the field that asks for it, and what that field says."""

    name: str
    param: str
    value: str


def slo_of(
    policy: Policy, route: Route, *, tenant: str, headers: Mapping[str, str], service_tier: ServiceTier | None = None
) -> tuple[Route, Slo]:
    """The route with the class that holds, and that class. A class decides the order, so one that is stricter than the route's
    needs a right; a TTFT of one's own does not. The header goes over the body's `service_tier`. Raises BadRequest or
    Forbidden."""
    name, param, value = _asked(policy, route, headers, service_tier)
    slo = policy.slo[name]
    if name != route.slo and not _may(policy, tenant, name) and _is_stricter(slo, policy.slo[route.slo]):
        said = f'"{value}", which here is the class "{name}" and stricter' if value != name else f'"{name}", which is stricter'
        raise Forbidden(f'{param}: this key may not ask for {said} than "{route.slo}"', param=param)
    if given := headers.get(TTFT_HEADER, "").strip():
        slo = msgspec.structs.replace(slo, ttft_s=_milliseconds(given))
    return route if name == route.slo else msgspec.structs.replace(route, slo=name), slo


def _asked(policy: Policy, route: Route, headers: Mapping[str, str], service_tier: ServiceTier | None) -> _RequestedSlo:
    if name := headers.get(CLASS_HEADER, "").strip():
        if name not in policy.slo:
            known = ", ".join(policy.slo)
            raise BadRequest(f'{CLASS_HEADER}: there is no SLO class "{name[:64]}": ask for one of {known}', param=CLASS_HEADER)
        return _RequestedSlo(name, CLASS_HEADER, name)
    tier = service_tier or "auto"
    class_ = policy.service_tiers.get(tier)
    if class_ is None and tier not in ("auto", "default"):
        known = ", ".join(dict.fromkeys(("auto", "default", *policy.service_tiers)))
        raise UnsupportedParameter(f'service_tier: "{tier}" is not offered here: ask for {known}', param="service_tier")
    return _RequestedSlo(class_ or route.slo, "service_tier", tier)


def _may(policy: Policy, tenant: str, name: str) -> bool:
    """Whoever is no tenant of the policy is the developer on this machine."""
    known = policy.tenants.get(tenant)
    return known is None or name in known.slo


def _is_stricter(asked: Slo, usual: Slo) -> bool:
    """By its TTFT, which decides the order; by its deadline where that is the same."""

    def strict(slo: Slo) -> tuple[float, float]:
        return slo.ttft_s or math.inf, slo.deadline_s or math.inf

    return strict(asked) < strict(usual)


def _milliseconds(text: str) -> float:
    try:
        seconds = float(text) / 1000
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise BadRequest(f"{TTFT_HEADER} is {text[:40]!r}: it must be milliseconds, more than 0")
    return seconds
