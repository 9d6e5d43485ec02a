"""The most that one request may take: whole prompt read, whole answer written, on the dearest worker that may get it."""

from collections.abc import Sequence

from gateway.metering.budgets import Amount
from gateway.routing.decide import AUTO
from gateway.routing.decision import RoutingRequest, WorkerView

USD_MARGIN = 2.0
"""Over the predicted price: a step with few sequences costs each of them more than the average that was learned."""


def budget_need(routing_request: RoutingRequest, fleet: Sequence[WorkerView], *, turns: int = 1) -> Amount:
    """Tokens are exact, as a prompt's and an answer's lengths are bounded; dollars as good as what is known of the workers.
    A question that may escalate may be charged for both attempts."""
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
