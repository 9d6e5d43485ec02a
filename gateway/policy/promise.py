"""What a caller is promised: the route's SLO class, or what the request asks for within the tenant's rights."""

import math
from collections.abc import Mapping

import msgspec

from gateway.errors import BadRequest, Forbidden
from gateway.policy.schema import Policy, Route, Slo

CLASS_HEADER = "x-headway-slo"
TTFT_HEADER = "x-llm-d-slo-ttft-ms"


def promise_of(policy: Policy, route: Route, *, tenant: str, headers: Mapping[str, str]) -> tuple[Route, Slo]:
    """The route with the class that holds, and that class. A class decides the order, so one that is stricter than the route's
    needs a right; a TTFT of one's own does not. Raises BadRequest or Forbidden."""
    name = headers.get(CLASS_HEADER, "").strip() or route.slo
    if name not in policy.slo:
        raise BadRequest(f'{CLASS_HEADER}: there is no SLO class "{name}": ask for one of {", ".join(policy.slo)}')
    slo = policy.slo[name]
    if name != route.slo and not _may(policy, tenant, name) and _is_stricter(slo, policy.slo[route.slo]):
        raise Forbidden(f'{CLASS_HEADER}: this key may not ask for "{name}", which is stricter than "{route.slo}"')
    if given := headers.get(TTFT_HEADER, "").strip():
        slo = msgspec.structs.replace(slo, ttft_s=_milliseconds(given))
    return msgspec.structs.replace(route, slo=name), slo


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
