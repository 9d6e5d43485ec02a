"""Inputs and outputs of the routing decision. A decision carries its reason and every rejected option."""

from collections import Counter
from typing import Literal

import msgspec

from gateway.policy.schema import TokenPrices
from gateway.routing.escalation import Escalating

PlacementReason = Literal[
    "stays",  # it has the pages, and its wait costs less than a prefill elsewhere
    "moves",  # another worker has the pages, but its wait costs more
    "burst",  # another run with the same first pages started there recently
    "roomiest",  # it has the most free tokens
]
Reason = Literal[
    "only_candidate",  # nothing else passed the hard filters
    "asked_by_name",  # the caller named the model
    "cheapest_good_enough",  # lowest score among those at or above the quality bar
    "best_quality",  # none reached the quality bar: the best of them
    "locked_tool_loop",  # the run is inside a tool loop on this model
    "degraded",  # waiting for the better one would have broken the SLO
    "escalated",  # the confidence of the smaller model's answer was too low
    "fallback",  # none of the candidates is up
    "failover",  # the chosen worker was lost before it started
]

RejectReason = Literal[
    "not_allowed",
    "context_too_long",
    "not_healthy",
    "below_quality_bar",
    "costs_more",
    "too_risky",
    "slower_same_cost",
    "locked_elsewhere",
    "breaks_slo",
    "placed_elsewhere",
]
REJECT_REASONS: dict[RejectReason, str] = {
    "not_allowed": "tenant or route does not offer it",
    "context_too_long": "the prompt does not fit",
    "not_healthy": "the worker was down",
    "below_quality_bar": "answers well enough too rarely",
    "costs_more": "costs more, doubt and switch counted",
    "too_risky": "cheaper, but not by enough for the doubt",
    "slower_same_cost": "same cost, slower",
    "locked_elsewhere": "the tool loop is on another model",
    "breaks_slo": "waiting there would have missed the SLO",
    "placed_elsewhere": "placement by run chose another worker",
}
"""Meaning of each reason. The OpenAPI document carries them, and the dashboard takes them from there."""

MAX_REJECTED = 8


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """State of one worker at the time of the decision. Times are in seconds, rates from online regressions.

    `prefill_s_per_token` and `decode_device_s_per_token` are device-seconds per token; `usd_per_s` is the price of a busy
    second.
    """

    worker: str
    model: str
    tier: str
    healthy: bool
    max_context: int
    usd_per_s: float
    max_sequences: int
    wait_s: float
    overhead_s: float
    prefill_s_per_token: float
    tpot_s: float
    decode_device_s_per_token: float
    prices: TokenPrices | None = None
    """Token prices of an upstream, instead of a price of its time."""

    def usd(self, uncached_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        if self.prices is not None:
            return self.prices.usd(uncached_tokens, cached_tokens, output_tokens)
        prefill_s = uncached_tokens * self.prefill_s_per_token
        return self.usd_per_s * (self.overhead_s + prefill_s + output_tokens * self.decode_device_s_per_token)

    @property
    def prefill_token_usd(self) -> float:
        """Dollars per uncached prompt token."""
        return self.prices.input / 1e6 if self.prices is not None else self.usd_per_s * self.prefill_s_per_token

    @property
    def decode_token_usd(self) -> float:
        """Dollars per output token."""
        return self.prices.output / 1e6 if self.prices is not None else self.usd_per_s * self.decode_device_s_per_token


class RoutingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as input of the decision. `prompt_tokens` and `cached_tokens` are by worker, as tokenizers differ.

    `quality` is by tier: the calibrated chance that its answer is as good as the top tier's.
    """

    asked: str
    candidates: tuple[str, ...]
    prompt_tokens: dict[str, int]
    cached_tokens: dict[str, int]
    max_output_tokens: int
    expected_output_tokens: float
    quality: dict[str, float]
    quality_bar: float
    mistake_cost: float = 0.0
    ttft_slo_s: float | None = None
    ttft_idle_factor: float = 4.0
    deadline_s: float | None = None
    miss_penalty_usd: float = 0.0
    locked_model: str | None = None
    warm_worker: str | None = None
    expected_remaining_turns: float = 0.0
    excluded_workers: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    """Models that are candidates while none of `candidates` is up."""
    has_tools: bool = False
    escalations: dict[str, Escalating] = {}
    """By tier that the route lets escalate."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    worker: str
    model: str
    tier: str
    quality: float
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float
    finish_s: float
    usd: float
    switch_usd: float
    risk_usd: float = 0.0
    miss_probability: float
    score_usd: float
    escalation_chance: float = 0.0
    """Chance to restart on the best tier. `quality`, `usd` and the times include its effect."""
    holdback_tokens: int = 0
    escalate_below: float = 0.0
    """The first `holdback_tokens` tokens are held back. If one is less likely than this, the request escalates."""


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    option: Option
    reason: RejectReason


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`rejected` holds the best MAX_REJECTED with their numbers; `rejected_by_reason` counts them all."""

    id: str
    reason: Reason
    chosen: Option
    rejected: tuple[Rejected, ...] = ()
    rejected_by_reason: dict[str, int] = {}
    route: str = ""
    quality_bar: float = 0.0
    typical_usd: float = 0.0
    """Dollars of the request by which a mistake is priced."""
    has_tools: bool = False
    placement: PlacementReason | None = None
    """Why placement took this worker among those that serve the chosen model equally. None without a choice."""

    def placed(self, worker: str, why: PlacementReason) -> "Decision":
        """Return the decision with the worker that placement chose: the chosen one, or a rejected one with the same model."""
        placed = self if worker == self.chosen.worker else self.moved(worker, "placed_elsewhere")
        return msgspec.structs.replace(placed, placement=why)

    def moved(self, worker: str, reason: RejectReason) -> "Decision":
        """Return the decision with a rejected worker as the chosen one. The former choice is rejected for `reason`."""
        promoted = next(rejected for rejected in self.rejected if rejected.option.worker == worker)
        demoted = Rejected(option=self.chosen, reason=reason)
        counts = Counter(self.rejected_by_reason)
        counts.update({reason: 1, promoted.reason: -1})
        return msgspec.structs.replace(
            self,
            chosen=promoted.option,
            rejected=(demoted, *(rejected for rejected in self.rejected if rejected is not promoted)),
            rejected_by_reason={reason: count for reason, count in counts.items() if count},
        )
