"""Checks of a policy beyond its types: references exist, shares add up, keys belong to one tenant."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from gateway.policy.schema import Policy, Route
from gateway.policy.yaml_document import Key, did_you_mean

Found = tuple[Key, str]
AUTO = "auto"
_URL_SCHEMES = ("unix://", "ws://", "wss://", "tcp://")


def problems_of(policy: Policy) -> Iterator[Found]:
    for check in _CHECKS:
        yield from check(policy)


def _tiers(policy: Policy) -> Iterator[Found]:
    if not policy.tiers:
        yield ("tiers",), "at least one tier is needed"
    for index, tier in enumerate(policy.tiers):
        if tier in policy.tiers[:index]:
            yield ("tiers", index), f'tier "{tier}" is listed twice'
        if tier == AUTO:
            yield ("tiers", index), '"auto" is reserved for automatic routing: rename the tier'


def _models(policy: Policy) -> Iterator[Found]:
    for name, model in policy.models.items():
        if name in policy.tiers or name == AUTO:
            yield ("models", name), f'"{name}" is also a tier or "auto", which makes requests ambiguous: rename the model'
        yield from _known(("models", name, "tier"), "tier", model.tier, policy.tiers)


def _upstreams(policy: Policy) -> Iterator[Found]:
    tiers = {name: model.tier for name, model in policy.models.items()}
    for name, upstream in policy.upstreams.items():
        at: Key = ("upstreams", name)
        if name in policy.workers:
            yield at, f'"{name}" is also a worker: rename one of them'
        if upstream.model in policy.tiers or upstream.model == AUTO:
            yield (
                (*at, "model"),
                f'"{upstream.model}" is also a tier or "auto", which makes requests ambiguous: rename the model',
            )
        yield from _known((*at, "tier"), "tier", upstream.tier, policy.tiers)
        if tiers.setdefault(upstream.model, upstream.tier) != upstream.tier:
            yield (*at, "tier"), f'"{upstream.model}" is in tier "{tiers[upstream.model]}" elsewhere: a model has one'


def _workers(policy: Policy) -> Iterator[Found]:
    if not policy.workers and not policy.upstreams:
        yield ("workers",), "at least one worker or upstream is needed"
    for name, worker in policy.workers.items():
        yield from _known(("workers", name, "model"), "model", worker.model, policy.models)
        yield from _known(("workers", name, "device"), "device", worker.device, policy.devices)
        if worker.draft is not None:
            yield from _known(("workers", name, "draft"), "model", worker.draft, policy.models)
        if worker.url is None:
            continue
        if not worker.url.startswith(_URL_SCHEMES):
            yield ("workers", name, "url"), f"must begin with one of {', '.join(_URL_SCHEMES)}"
        for field in ("threads", "kv_tokens", "host_kv_tokens", "kv_dtype", "speculate", "draft", "prefill_tokens"):
            if getattr(worker, field) is not None:
                yield ("workers", name, field), "is for workers that the gateway starts; this one has a url"


def _shares(policy: Policy) -> Iterator[Found]:
    for device in policy.devices:
        names = [name for name, worker in policy.workers.items() if worker.device == device]
        shares = {name: share for name in names if (share := policy.workers[name].share) is not None}
        total = sum(shares.values())
        if not shares:
            continue
        if total > 1 + 1e-9:
            largest = max(shares, key=lambda name: shares[name])
            yield ("workers", largest, "share"), f'the shares of "{device}" add up to {total:g}, over 1'
        elif len(shares) == len(names) and total < 1 - 1e-9:
            yield ("workers", names[-1], "share"), f'the shares of "{device}" add up to {total:g}: leave one out or make it 1'
        elif len(shares) < len(names) and total > 1 - 1e-9:
            rest = next(name for name in names if name not in shares)
            yield ("workers", rest), f'nothing of "{device}" is left for it: the other shares add up to 1'


def _tenants(policy: Policy) -> Iterator[Found]:
    owner: dict[str, str] = {}
    for name, tenant in policy.tenants.items():
        for index, key in enumerate(tenant.keys):
            if not key:
                yield ("tenants", name, "keys", index), "an empty key matches no request: remove it"
            elif key in owner:
                yield ("tenants", name, "keys", index), f'this key is also one of "{owner[key]}"'
            owner.setdefault(key, name)
        for index, model in enumerate(tenant.models):
            yield from _offered(policy, ("tenants", name, "models", index), model, auto=True)
        for index, slo in enumerate(tenant.slo):
            yield from _known(("tenants", name, "slo", index), "SLO class", slo, policy.slo)


def _keys(policy: Policy) -> Iterator[Found]:
    owner: dict[str, str] = {}
    for name, key in policy.keys.items():
        yield from _known(("keys", name, "tenant"), "tenant", key.tenant, policy.tenants)
        if key.hash in owner:
            yield ("keys", name, "hash"), f'this key is also "{owner[key.hash]}"'
        owner.setdefault(key.hash, name)


def _listen(policy: Policy) -> Iterator[Found]:
    if not requires_key(policy) and not is_loopback(policy.listen.host):
        yield (
            ("listen", "host"),
            "without any key the gateway may only listen on this machine: add keys, set `require_key`, or use 127.0.0.1",
        )


def _routes(policy: Policy) -> Iterator[Found]:
    if not policy.routes:
        yield ("routes",), "at least one route is needed"
    for name, times in Counter(route.name for route in policy.routes).items():
        if times > 1:
            last = max(i for i, route in enumerate(policy.routes) if route.name == name)
            yield ("routes", last, "name"), f'{times} routes are called "{name}"'
    for index, route in enumerate(policy.routes):
        at: Key = ("routes", index)
        if not route.candidates:
            yield (*at, "candidates"), "at least one candidate is needed"
        for i, candidate in enumerate(route.candidates):
            yield from _offered(policy, (*at, "candidates", i), candidate, auto=False)
        for i, fallback in enumerate(route.fallbacks):
            yield from _offered(policy, (*at, "fallbacks", i), fallback, auto=False)
        for i, budget in enumerate(route.budgets):
            yield from _known((*at, "budgets", i), "budget", budget, policy.budgets)
        yield from _split(policy, (*at, "split"), route)
        yield from _known((*at, "slo"), "SLO class", route.slo, policy.slo)
        for i, tenant in enumerate(route.match.tenant):
            yield from _known((*at, "match", "tenant", i), "tenant", tenant, policy.tenants)
        for i, model in enumerate(route.match.model):
            yield from _offered(policy, (*at, "match", "model", i), model, auto=True)
        low, high = route.match.min_prompt_tokens, route.match.max_prompt_tokens
        if low is not None and high is not None and low > high:
            yield (*at, "match", "min_prompt_tokens"), f"{low} is more than max_prompt_tokens, {high}: it can never match"


def _split(policy: Policy, at: Key, route: Route) -> Iterator[Found]:
    total = sum(arm.share for arm in route.split.values())
    if total > 1 + 1e-9:
        yield at, f"the shares add up to {total:g}, over 1"
    for name, arm in route.split.items():
        for i, candidate in enumerate(arm.candidates):
            yield from _offered(policy, (*at, name, "candidates", i), candidate, auto=False)


def _service_tiers(policy: Policy) -> Iterator[Found]:
    for tier, slo in policy.service_tiers.items():
        yield from _known(("service_tiers", tier), "SLO class", slo, policy.slo)


def _budgets(policy: Policy) -> Iterator[Found]:
    for name, budget in policy.budgets.items():
        if budget.usd is None and budget.tokens is None and budget.turns is None:
            yield ("budgets", name), "limits nothing: give usd, tokens or turns"


def _served(policy: Policy) -> Iterator[Found]:
    tiers = policy.tier_by_model()
    models = set(policy.model_by_server().values())
    served = models | {tiers[model] for model in models if model in tiers}
    for index, route in enumerate(policy.routes):
        if route.candidates and not served.intersection(route.candidates):
            yield ("routes", index, "candidates"), "no worker serves any of them: add a worker or change the list"


def _offered(policy: Policy, key: Key, name: str, *, auto: bool) -> Iterator[Found]:
    yield from _known(key, "tier or model", name, [*policy.tiers, *policy.tier_by_model(), *([AUTO] if auto else [])])


def _known(key: Key, what: str, name: str, known: Iterable[str] | Mapping[str, object]) -> Iterator[Found]:
    names = list(known)
    if name not in names:
        yield key, f'there is no {what} "{name}"{did_you_mean(name, names)}'


def requires_key(policy: Policy) -> bool:
    """Return whether the policy alone requires a key, without regard to the key store."""
    return policy.listen.require_key or bool(policy.keys) or any(tenant.keys for tenant in policy.tenants.values())


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_CHECKS: tuple[Callable[[Policy], Iterator[Found]], ...] = (
    _tiers,
    _models,
    _workers,
    _upstreams,
    _shares,
    _tenants,
    _keys,
    _listen,
    _routes,
    _service_tiers,
    _budgets,
    _served,
)
