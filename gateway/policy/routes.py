"""Route of a request: the first whose match holds, and the arm of its split that the run is hashed to."""

import hashlib
import hmac
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

import msgspec

from gateway.errors import Forbidden, UnknownModel
from gateway.policy.schema import Match, Policy, Route
from gateway.policy.validate import AUTO

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def find_route(
    policy: Policy,
    *,
    asked: str,
    tenant: str,
    has_tools: bool,
    prompt_tokens: int,
    headers: Mapping[str, str] = _NO_HEADERS,
    key_id: str = "",
    run: str = "",
) -> Route:
    """Return the first route that matches. `prompt_tokens` is the largest count among the tokenizers; `headers` have names in
    lower case. An arm of a split route is returned as a route called `ROUTE/ARM`. Raises UnknownModel, or Forbidden when no
    route matches."""
    check_asked(policy, asked=asked, tenant=tenant)
    for route in policy.routes:
        if _holds(route.match, asked, tenant, has_tools, prompt_tokens, headers, key_id):
            return _arm_of(route, run) if route.split else route
    raise Forbidden("no route of the policy takes this request: add one without `match` as the last", param="model")


def _arm_of(route: Route, run: str) -> Route:
    """Return the arm of a run by hash. A run always gets the same arm; a new last arm moves only the runs it gets."""
    digest = hashlib.blake2b(f"{route.name}\0{run}".encode(errors="replace"), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64
    for name, arm in route.split.items():
        if point < arm.share:
            return msgspec.structs.replace(
                route,
                name=f"{route.name}/{name}",
                candidates=arm.candidates or route.candidates,
                quality_bar=route.quality_bar if arm.quality_bar is None else arm.quality_bar,
                mistake_cost=route.mistake_cost if arm.mistake_cost is None else arm.mistake_cost,
                escalate=arm.escalate or route.escalate,
                split={},
            )
        point -= arm.share
    return route


def check_asked(policy: Policy, *, asked: str, tenant: str) -> None:
    """Raise UnknownModel when there is no such tier or model, Forbidden when the tenant may not use it."""
    if asked != AUTO and asked not in policy.tiers and asked not in policy.tier_by_model():
        known = ", ".join([AUTO, *policy.tiers, *policy.tier_by_model()])
        raise UnknownModel(f'there is no model "{asked}": ask for one of {known}', param="model")
    if asked != AUTO and not may_use(policy, tenant=tenant, name=asked):
        raise Forbidden(f'this key may not use "{asked}"', param="model")


def may_use(policy: Policy, *, tenant: str, name: str) -> bool:
    """Return whether a tenant may use this tier or model. A tenant without a list may use all."""
    known = policy.tenants.get(tenant)
    allowed = known.models if known else ()
    if not allowed or AUTO in allowed or name in allowed:
        return True
    return policy.tier_by_model().get(name) in allowed


def candidates_for(policy: Policy, route: Route, *, tenant: str) -> tuple[str, ...]:
    """Return the route's candidate models that the tenant may use."""
    return _models_of(policy, route.candidates, tenant)


def fallbacks_for(policy: Policy, route: Route, *, tenant: str) -> tuple[str, ...]:
    """Return the models for when no candidate is up, as far as the tenant may use them."""
    return _models_of(policy, route.fallbacks, tenant) if route.fallbacks else ()


def _models_of(policy: Policy, names: tuple[str, ...], tenant: str) -> tuple[str, ...]:
    offered = [name for name, tier in policy.tier_by_model().items() if name in names or tier in names]
    known = policy.tenants.get(tenant)
    if known is None or not known.models:
        return tuple(offered)
    return tuple([name for name in offered if may_use(policy, tenant=tenant, name=name)])


def _holds(
    match: Match, asked: str, tenant: str, has_tools: bool, prompt_tokens: int, headers: Mapping[str, str], key_id: str
) -> bool:
    return (
        (not match.model or asked in match.model)
        and (not match.tenant or tenant in match.tenant)
        and (match.tools is None or match.tools == has_tools)
        and (match.min_prompt_tokens is None or prompt_tokens >= match.min_prompt_tokens)
        and (match.max_prompt_tokens is None or prompt_tokens <= match.max_prompt_tokens)
        and all(fnmatchcase(headers.get(name.lower(), "\0"), pattern) for name, pattern in match.headers.items())
        and (not match.key or (key_id != "" and key_id in match.key) or _sent_key_in(match.key, headers))
    )


def _sent_key_in(keys: tuple[str, ...], headers: Mapping[str, str]) -> bool:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = (bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()).encode()
    return any(hmac.compare_digest(sent, key.encode()) for key in keys)
