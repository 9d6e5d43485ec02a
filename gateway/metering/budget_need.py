"""Upper bound on one request's use: full prefill and full output on the most expensive worker that may get it."""

from collections.abc import Sequence

from gateway.metering.budgets import Amount
from gateway.routing.decide import AUTO
from gateway.routing.decision import RoutingRequest, WorkerView

USD_MARGIN = 2.0
"""Factor over the predicted price: in a step with few sequences, each costs more than the learned average."""


def budget_need(routing_request: RoutingRequest, fleet: Sequence[WorkerView], *, turns: int = 1) -> Amount:
    """Return the most that a request may take. Tokens are an exact bound. Dollars depend on the learned rates of the workers. A
    request that may escalate counts both attempts."""
    offered = (*routing_request.candidates, *routing_request.fallbacks)
    usd, tokens = 0.0, 0
    for view in fleet:
        prompt = routing_request.prompt_tokens.get(view.worker)
        if (
            prompt is None
            or not {view.model, view.tier} & set(offered)
            or routing_request.asked not in (AUTO, view.model, view.tier)
        ):
            continue
        output = max(0, min(routing_request.max_output_tokens, view.max_context - prompt))
        device_s = view.overhead_s + prompt * view.prefill_s_per_token + output * view.decode_device_s_per_token
        usd, tokens = max(usd, view.usd_per_s * device_s), max(tokens, prompt + output)
    attempts = 2 if routing_request.escalations else 1
    return Amount(USD_MARGIN * attempts * usd, tokens, turns)
