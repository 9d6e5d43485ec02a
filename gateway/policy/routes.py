"""Which route of a policy a request takes: the first whose match holds."""

from gateway.errors import Forbidden, UnknownModel
from gateway.policy.references import AUTO
from gateway.policy.schema import Match, Policy, Route


def find_route(policy: Policy, *, asked: str, tenant: str, has_tools: bool, prompt_tokens: int) -> Route:
    """`prompt_tokens` is the longest count among the tokenizers. Raises UnknownModel, or Forbidden when nothing matches."""
    check_asked(policy, asked=asked, tenant=tenant)
    for route in policy.routes:
        if _holds(route.match, asked, tenant, has_tools, prompt_tokens):
            return route
    raise Forbidden("no route of the policy takes this request: add one without `match` as the last", param="model")


def check_asked(policy: Policy, *, asked: str, tenant: str) -> None:
    """Raises UnknownModel when there is no such tier or model, Forbidden when the tenant may not ask for it."""
    if asked != AUTO and asked not in policy.tiers and asked not in policy.models:
        known = ", ".join([AUTO, *policy.tiers, *policy.models])
        raise UnknownModel(f'there is no model "{asked}": ask for one of {known}', param="model")
    if asked != AUTO and not may_use(policy, tenant=tenant, name=asked):
        raise Forbidden(f'this key may not use "{asked}"', param="model")


def may_use(policy: Policy, *, tenant: str, name: str) -> bool:
    """Whether a tenant may be served by this tier or model. A tenant that lists none may use all."""
    known = policy.tenants.get(tenant)
    allowed = known.models if known else ()
    if not allowed or AUTO in allowed or name in allowed:
        return True
    model = policy.models.get(name)
    return model is not None and model.tier in allowed


def candidates_for(policy: Policy, route: Route, *, tenant: str) -> tuple[str, ...]:
    """Models that the route offers and the tenant may use."""
    return tuple(
        name
        for name, model in policy.models.items()
        if (name in route.candidates or model.tier in route.candidates) and may_use(policy, tenant=tenant, name=name)
    )


def _holds(match: Match, asked: str, tenant: str, has_tools: bool, prompt_tokens: int) -> bool:
    return (
        (not match.model or asked in match.model)
        and (not match.tenant or tenant in match.tenant)
        and (match.tools is None or match.tools == has_tools)
        and (match.min_prompt_tokens is None or prompt_tokens >= match.min_prompt_tokens)
        and (match.max_prompt_tokens is None or prompt_tokens <= match.max_prompt_tokens)
    )
