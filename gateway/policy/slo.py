"""SLO of a request: the route's class, or the one that the request asks for, if the tenant may use it."""

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
    """Requested SLO class, the field that asks for it, and that field's value."""

    name: str
    param: str
    value: str


def slo_of(
    policy: Policy, route: Route, *, tenant: str, headers: Mapping[str, str], service_tier: ServiceTier | None = None
) -> tuple[Route, Slo]:
    """Return the route with its effective SLO class, and that class.

    The class decides the queue order, so one stricter than the route's needs a permission. The TTFT header needs none. The
    class header takes precedence over the body's `service_tier`. Raises BadRequest or Forbidden.
    """
    name, param, value = _asked(policy, route, headers, service_tier)
    slo = policy.slo[name]
    if name != route.slo and not _may(policy, tenant, name) and _is_stricter(slo, policy.slo[route.slo]):
        described = (
            f'"{value}", which here is the class "{name}" and stricter' if value != name else f'"{name}", which is stricter'
        )
        raise Forbidden(f'{param}: this key may not ask for {described} than "{route.slo}"', param=param)
    if ttft_ms := headers.get(TTFT_HEADER, "").strip():
        slo = msgspec.structs.replace(slo, ttft_s=_milliseconds(ttft_ms))
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
    """Return whether the tenant may use the class. A tenant outside the policy is the local developer, who may use all."""
    known = policy.tenants.get(tenant)
    return known is None or name in known.slo


def _is_stricter(asked: Slo, usual: Slo) -> bool:
    """Return whether a class is stricter: by its TTFT, which decides the order, then by its deadline."""

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
