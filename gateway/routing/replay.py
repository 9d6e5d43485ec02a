"""Replay of recorded decisions under another policy, from the numbers recorded with them. Pure and deterministic.

Options keep the times, dollars and quality that were predicted when recorded. Only which options are allowed, and their
weights, change. The effect of a changed choice on caches and queues is not modelled.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.errors import HeadwayError
from gateway.policy.routes import candidates_for, fallbacks_for, find_route
from gateway.policy.schema import Policy, Route, Slo
from gateway.routing.decide import AUTO, miss_probability
from gateway.routing.decision import Decision, Option

_NEVER = ("context_too_long", "not_healthy")
"""Reject reasons of options that no policy could choose."""


class Recorded(NamedTuple):
    """A decision and the fields by which its request matches a route. Headers and keys are not recorded: routes that need
    them do not match."""

    decision: Decision
    tenant: str
    run: str
    asked: str


@dataclass(slots=True)
class Side:
    """Sums over all decisions under one policy. `refused` counts those without a matching route or allowed option."""

    tiers: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    usd: float = 0.0
    quality: float = 0.0
    on_time: float = 0.0
    judged: int = 0
    decided: int = 0
    refused: int = 0

    def add(self, option: Option, route: str, slo: Slo, *, judged: bool) -> None:
        self.tiers[option.tier] += 1
        self.routes[route] += 1
        self.usd += option.usd
        self.on_time += 1.0 - _missed(option, slo)
        self.decided += 1
        if judged:
            self.quality += option.quality
            self.judged += 1


class Replayed(NamedTuple):
    before: Side
    after: Side
    moved: int


def replay(recorded: Iterable[Recorded], policy: Policy, slo_before: Policy) -> Replayed:
    """Return the sums before and after. `slo_before` is the policy with the SLOs of the recorded side. `moved` counts
    requests whose worker changed."""
    before, after, moved = Side(), Side(), 0
    for record in recorded:
        judged = record.asked == AUTO
        chosen = record.decision.chosen
        old_route = _route_of(slo_before, record)
        before.add(chosen, record.decision.route, slo_before.slo[old_route.slo] if old_route else Slo(), judged=judged)
        route = _route_of(policy, record)
        option = _choose(record, route, policy) if route else None
        if route is None or option is None:
            after.refused += 1
            continue
        after.add(option, route.name, policy.slo[route.slo], judged=judged)
        moved += option.worker != chosen.worker
    return Replayed(before, after, moved)


def _route_of(policy: Policy, record: Recorded) -> Route | None:
    try:
        return find_route(
            policy,
            asked=record.asked,
            tenant=record.tenant,
            has_tools=record.decision.has_tools,
            prompt_tokens=max(option.prompt_tokens for option in _options(record.decision)),
            run=record.run,
        )
    except HeadwayError:
        return None


def _options(decision: Decision) -> Sequence[Option]:
    usable = [rejected.option for rejected in decision.rejected if rejected.reason not in _NEVER]
    return [decision.chosen, *usable]


def _choose(record: Recorded, route: Route, policy: Policy) -> Option | None:
    options = [option for option in _options(record.decision) if record.asked in (AUTO, option.model, option.tier)]
    offered = [option for option in options if option.model in candidates_for(policy, route, tenant=record.tenant)]
    offered = offered or [option for option in options if option.model in fallbacks_for(policy, route, tenant=record.tenant)]
    if record.decision.reason == "locked_tool_loop" and route.lock_tool_loop:
        offered = [option for option in offered if option.model == record.decision.chosen.model] or offered
        return _cheapest(offered, route, policy, 0.0, 0.0)
    if record.asked != AUTO:
        return _cheapest(offered, route, policy, 0.0, 0.0)
    mistake_usd = route.mistake_cost * record.decision.typical_usd
    good = [option for option in offered if option.quality >= route.quality_bar]
    if not good and offered:
        best = max(option.quality for option in offered)
        good = [option for option in offered if option.quality == best]
    return _cheapest(good, route, policy, mistake_usd, 1.0)


def _cheapest(options: Sequence[Option], route: Route, policy: Policy, mistake_usd: float, doubted: float) -> Option | None:
    slo = policy.slo[route.slo]

    def score(option: Option) -> tuple[float, float, str]:
        risk = doubted * mistake_usd * (1.0 - option.quality)
        usd = option.usd + option.switch_usd + risk + slo.miss_penalty_usd * _missed(option, slo)
        return usd, option.finish_s, option.worker

    return min(options, key=score, default=None)


def _missed(option: Option, slo: Slo) -> float:
    on_time = 1.0 - miss_probability(option.ttft_s, slo.ttft_s)
    return 1.0 - on_time * (1.0 - miss_probability(option.finish_s, slo.deadline_s))
