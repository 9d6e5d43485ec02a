"""The choice among equivalent workers of the chosen model: the fleet as `Placement` sees it.

Workers are equivalent at one price, among the chosen option and the best rejected ones; an SLO with a price must hold as well.
"""

from collections.abc import Mapping, Sequence

from gateway.fleet.fleet import Fleet
from gateway.routing.decision import Decision, Option, RejectReason, RoutingRequest
from gateway.scheduling.placement import Candidate, Placement
from gateway.text.prompt_encoder import Prompt

BURST_PAGES = 16
"""Pages of a common prefix that place runs together. A shorter prefix costs little to recompute."""
AS_GOOD = 0.02
"""The probability by which an SLO with a price may be at more risk on an equivalent worker."""
_PASSED_OVER: frozenset[RejectReason] = frozenset({"costs_more", "slower_same_cost"})


def place_among_alike(
    placement: Placement,
    fleet: Fleet,
    routing_request: RoutingRequest,
    decision: Decision,
    prompts: Mapping[str, Prompt],
    *,
    chain: str,
    now: float,
) -> Decision:
    """Return the decision with the worker that holds most of the run, or has most capacity for it. Without side effects."""
    chosen = decision.chosen
    alike = _alike(fleet, routing_request, decision) if fleet.policy.scheduling.placement else []
    if len(alike) < 2:
        return decision
    usable = [one for one in alike if _is_warm(one) or fleet.clients[one.worker].credits.num_free > 0] or alike
    sites = [_site(fleet, one, chain) for one in usable]
    prefix = beginning(prompts[chosen.worker].page_hashes)
    return decision.placed(*placement.choose(sites, chosen.prompt_tokens, now, prefix=prefix))


def beginning(page_hashes: Sequence[bytes]) -> bytes:
    """Return the hash of a prompt's first pages; empty for a shorter prompt."""
    return page_hashes[BURST_PAGES - 1] if len(page_hashes) >= BURST_PAGES else b""


def _alike(fleet: Fleet, routing_request: RoutingRequest, decision: Decision) -> list[Option]:
    chosen = decision.chosen
    if chosen.worker not in fleet.clients:
        return []
    others = (one.option for one in decision.rejected if one.reason in _PASSED_OVER)
    most = chosen.miss_probability + AS_GOOD if routing_request.miss_penalty_usd > 0 else 1.0
    return [
        chosen,
        *(
            one
            for one in others
            if one.model == chosen.model
            and one.worker in fleet.clients
            and fleet.usd_per_s[one.worker] == fleet.usd_per_s[chosen.worker]
            and one.miss_probability <= most
        ),
    ]


def _is_warm(option: Option) -> bool:
    return 2 * option.cached_tokens >= option.prompt_tokens


def _site(fleet: Fleet, option: Option, chain: str) -> Candidate:
    rates = fleet.predictors[option.worker].rates
    uncached = option.prompt_tokens - option.cached_tokens
    return Candidate(
        worker=option.worker,
        wait_s=max(0.0, option.ttft_s - rates.overhead_s - uncached * rates.prefill_s_per_token),
        resident_tokens=option.cached_tokens,
        capacity_tokens=fleet.capacity_tokens(option.worker),
        footprint_tokens=fleet.footprints.tokens(option.worker, without=chain) + fleet.queued_tokens[option.worker],
        prefill_rate=1.0 / rates.prefill_s_per_token,
    )
