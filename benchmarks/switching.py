"""Claim: deciding at every user turn with both tiers' caches is cheaper than switching blindly, and not worse than staying.

Method: a simulation of runs of 4 to 12 turns whose context grows, with one to three hard turns in the middle. The gateway's own
`decide` and `KvIndex` choose the worker, at the rates that a gateway assumes of pico and nano before measuring them. The small
tier answers easy turns right at 97 % and hard ones at 25 %, the large one at 98 and 95 %. A turn is observed as one noisy
number (easy and hard overlap: AUC .93). The quality estimate is the probability given that number, as calibrated as the
gateway's. A worker keeps a run's pages and loses them between two turns with a probability of 5 %. Dollars are of the actual
computation. Peers, over the same runs and the same luck: blind (every turn as if no pages were cached) and sticky (the first
turn's model until a better one is chosen, then that), each at all prices of a mistake. Targets: against the more accurate peer
at a price of 1, ours at the cheapest price that is no less accurate; and dollars at equal accuracy, as a mean over the
accuracies that both reach. Interval: bootstrap over runs.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from backends.wire import Cache
from benchmarks.report import Target, arguments, finish, table
from gateway.routing.decide import decide
from gateway.routing.decision import RoutingRequest, WorkerView
from gateway.scheduling.kv_index import KvIndex
from gateway.scheduling.latency_model import cold_rates

PAGE = 16
_USD_PER_S = 0.20 / 3600 / 2
_RIGHT = {("small", False): 0.97, ("small", True): 0.25, ("large", False): 0.98, ("large", True): 0.95}
_WEIGHT_BYTES = {"small": 1_200_000, "large": 24_000_000}
_LOST = 0.05
POLICIES = ("aware", "blind", "sticky")
PRICES = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
_BAR = 0.3
_SEEN = {False: 3.2, True: -1.0}
_SEEN_DEVIATION = 2.0
_HARD_SHARE = 0.25


class Turn(NamedTuple):
    """A turn. `luck` decides whether an answer is right, the same for every policy; `lost` are workers that dropped the run's
    pages since the last turn."""

    prompt_tokens: int
    output_tokens: int
    hard: bool
    quality: float
    luck: float
    lost: tuple[str, ...]


class Total(NamedTuple):
    usd: float
    right: int
    turns: int
    switches: int


def main() -> None:
    args = arguments(__doc__).parse_args()
    number = 100 if args.quick else 1000
    rng = random.Random(5)
    runs = [_run(rng) for _ in range(number)]
    lines, results = [], {}
    totals: dict[tuple[str, float], list[Total]] = {}
    curves: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    for policy in POLICIES:
        for price in PRICES:
            found = totals[policy, price] = [_play(run, policy, price) for run in runs]
            usd, accuracy = sum(one.usd for one in found) / number, _accuracy(found)
            switches = sum(one.switches for one in found) / number
            curves[policy].append((accuracy, usd))
            lines.append((policy, price, 1e6 * usd, accuracy, switches))
            results[f"{policy} at {price:g}"] = {"usd_per_run": usd, "accuracy": accuracy, "switches_per_run": switches}
    print(table(("policy", "mistake", "µ$ a run", "accuracy", "switches a run"), lines))
    better = max(("blind", "sticky"), key=lambda policy: _accuracy(totals[policy, 1.0]))
    wanted = _accuracy(totals[better, 1.0])
    enough = [price for price in PRICES if _accuracy(totals["aware", price]) >= wanted]
    ours = min(enough or PRICES[-1:], key=lambda price: sum(one.usd for one in totals["aware", price]))
    pairs = [(a.usd, b.usd) for a, b in zip(totals["aware", ours], totals[better, 1.0], strict=True)]
    low, high = _interval(pairs)
    ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    results["at no lower accuracy"] = {"mistake_cost": ours, "usd_ratio": ratio, "low": low, "high": high}
    equal = {peer: _at_equal_accuracy(curves["aware"], curves[peer]) for peer in ("blind", "sticky")}
    results["usd ratio at equal accuracy"] = equal
    targets = [
        Target(f"usd_ratio_to_{better}", ratio, "<=", 1.0),
        Target(f"accuracy_over_{better}", _accuracy(totals["aware", ours]) - wanted, ">=", 0.0),
        *(Target(f"usd_at_equal_accuracy_to_{peer}", value, "<=", 1.0) for peer, value in equal.items()),
    ]
    finish("switching", results, targets)


def _at_equal_accuracy(ours: list[tuple[float, float]], peers: list[tuple[float, float]]) -> float:
    """Return the mean ratio of dollars, both curves interpolated, over the accuracies that both reach."""
    ours, peers = sorted(ours), sorted(peers)
    at = np.linspace(max(ours[0][0], peers[0][0]), min(ours[-1][0], peers[-1][0]), 20)
    mine = np.interp(at, [accuracy for accuracy, _ in ours], [usd for _, usd in ours])
    theirs = np.interp(at, [accuracy for accuracy, _ in peers], [usd for _, usd in peers])
    return float(np.mean(mine / theirs))


def _run(rng: random.Random) -> list[Turn]:
    turns, prompt = rng.randint(4, 12), rng.randint(100, 1500)
    first_hard = rng.randint(1, turns - 2)
    hard = range(first_hard, first_hard + rng.randint(1, min(3, turns - first_hard - 1)))
    found = []
    for number in range(turns):
        is_hard = number in hard
        quality = _calibrated(rng.gauss(_SEEN[is_hard], _SEEN_DEVIATION))
        output = rng.randint(8, 80)
        lost = tuple(tier for tier in ("small", "large") if rng.random() < _LOST)
        found.append(Turn(prompt, output, is_hard, quality, rng.random(), lost))
        prompt += output + rng.randint(20, 300)
    return found


def _calibrated(seen: float) -> float:
    """Return the probability that the small tier is as good as the large one, by Bayes."""
    odds = {hard: math.exp(-0.5 * ((seen - middle) / _SEEN_DEVIATION) ** 2) for hard, middle in _SEEN.items()}
    hard = _HARD_SHARE * odds[True] / (_HARD_SHARE * odds[True] + (1 - _HARD_SHARE) * odds[False])
    # Both use the same luck: the small tier is worse only if luck lies between the two probabilities.
    worse = {kind: _RIGHT["large", kind] - _RIGHT["small", kind] for kind in (False, True)}
    return 1.0 - hard * worse[True] - (1.0 - hard) * worse[False]


def _play(run: Sequence[Turn], policy: str, mistake_cost: float) -> Total:
    kv_index, held = KvIndex(100_000), {"small": 0, "large": 0}
    sequence = {"small": -1, "large": -1}
    usd, right, switches = 0.0, 0, 0
    warm: str | None = None
    for number, turn in enumerate(run):
        for tier in turn.lost:
            held[tier] = 0
        page_hashes = [b"%016d" % page for page in range(turn.prompt_tokens // PAGE)]
        for tier in held:
            sequence[tier] += 1
            stored = b"".join(page_hashes[: held[tier] // PAGE])
            kv_index.apply(tier, Cache(sequence=sequence[tier], stored=stored, reset=True))
        cached = {tier: kv_index.cached_tokens(tier, page_hashes, PAGE) for tier in held}
        tier = _choose(turn, cached, warm, policy, mistake_cost, remaining=len(run) - 1 - number)
        usd += _paid(turn, tier, cached[tier])
        right += turn.luck < _RIGHT[tier, turn.hard]
        switches += warm is not None and warm != tier
        held[tier] = turn.prompt_tokens + turn.output_tokens
        warm = tier
    return Total(usd, right, len(run), switches)


def _choose(turn: Turn, cached: dict[str, int], warm: str | None, policy: str, mistake_cost: float, *, remaining: int) -> str:
    if policy == "sticky" and warm == "large":
        return warm
    routing_request = RoutingRequest(
        asked="auto",
        candidates=("small", "large"),
        prompt_tokens=dict.fromkeys(cached, turn.prompt_tokens),
        cached_tokens=cached if policy == "aware" else {},
        max_output_tokens=256,
        expected_output_tokens=44.0,
        quality={"small": turn.quality, "large": 1.0},
        quality_bar=_BAR,
        mistake_cost=mistake_cost,
        warm_worker=warm if policy == "aware" else None,
        expected_remaining_turns=float(remaining),
    )
    return decide(routing_request, [_view(tier) for tier in cached], decision_id="").chosen.worker


def _paid(turn: Turn, tier: str, cached: int) -> float:
    rates = cold_rates(_WEIGHT_BYTES[tier])
    prefill_s = rates.overhead_s + max(1, turn.prompt_tokens - cached) * rates.prefill_s_per_token
    return _USD_PER_S * (prefill_s + turn.output_tokens * rates.decode_device_s_per_token)


def _view(tier: str) -> WorkerView:
    rates = cold_rates(_WEIGHT_BYTES[tier])
    return WorkerView(
        worker=tier,
        model=tier,
        tier=tier,
        healthy=True,
        max_context=100_000,
        usd_per_s=_USD_PER_S,
        max_sequences=32,
        wait_s=0.0,
        **rates._asdict(),
    )


def _accuracy(found: Sequence[Total]) -> float:
    return sum(one.right for one in found) / sum(one.turns for one in found)


def _interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of sums."""
    rng, table_ = np.random.default_rng(0), np.array(pairs)
    ratios = []
    for _ in range(1000):
        sums = table_[rng.integers(0, len(table_), len(table_))].sum(axis=0)
        ratios.append(sums[0] / sums[1])
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


if __name__ == "__main__":
    main()
