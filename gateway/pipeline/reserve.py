"""Reservations before dispatch: tokens of the rate limits, and tokens or dollars of the route's budgets."""

import math
import time

from gateway.fleet.fleet import Fleet
from gateway.metering.budgets import Payers, Reservation, budget_need
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.recorder import RequestRecorder
from gateway.pipeline.stages import Identified, Reserved
from gateway.runs.identity import public_id


def reserve(pending: PendingRequest, identified: Identified, fleet: Fleet, recorder: RequestRecorder, id: str) -> Reserved:
    """Reserve for every choice of the request and record the budgets' reservations under `id`.

    Raises RateLimited or OverBudget. A raised error leaves nothing reserved from a budget.
    """
    context, num_choices = identified.context, identified.request.num_choices
    tokens = _reserve_tokens(pending, identified, recorder)
    payers = Payers(identified.tenant, context.key_id, public_id(identified.identity.run))
    reservations = list[Reservation]()
    if pending.budgets:
        views = fleet.views()
        # All choices together are one turn.
        wanted = [budget_need(pending.routing_request, views, turns=turns) for turns in [0] * (num_choices - 1) + [1]]
        wall_s = context.wall_ns / 1e9
        reservations = recorder.budgets.reserve(pending.budgets, payers, wanted, wall_s)
        if reservations:
            recorder.record_reservation(id, pending.route, payers, reservations, wall_s)
    return Reserved(tokens, reservations)


def _reserve_tokens(pending: PendingRequest, identified: Identified, recorder: RequestRecorder) -> int:
    """Reserve, for each choice, the prompt and the requested or expected answer. Return the tokens of one choice."""
    context, routing_request = identified.context, pending.routing_request
    if context.rate_limit_pass is None:
        return 0
    asked, expected = routing_request.max_output_tokens, math.ceil(routing_request.expected_output_tokens)
    output = asked if identified.request.max_tokens_given else expected
    tokens = max(routing_request.prompt_tokens.values(), default=0) + output
    wanted = [tokens] * identified.request.num_choices
    recorder.rates.reserve(context.rate_limit_pass, context.limited, wanted, time.monotonic())
    return tokens
