"""The few workers of a large fleet from which `decide` makes the same decision as from all of them. Pure.

The chosen worker, the best rejected ones and the counts by reason are equal. A test compares both, number for number: every
line here has its counterpart in `decide`. Views are kept as columns with one row a worker, and updated one row at a time.

Values that depend only on a worker's kind (its model and tier: offered or not, quality, risk) are computed once a kind. The
set of healthy offered workers is cached until the health, kind or context length of a worker changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.routing.decide import AUTO, SAME_COST, FleetSummary, plans_for, typical_usd
from gateway.routing.decision import MAX_REJECTED, RoutingRequest, WorkerView

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

MAX_OFFERS = 64
"""Largest number of cached offers, one for each pair of candidates and requested model."""
_NUMBERS = ("wait_s", "overhead_s", "prefill_s_per_token", "tpot_s", "decode_device_s_per_token", "usd_per_s", "max_context")


class Short(NamedTuple):
    """`fleet_summary` is None when the views are the whole fleet."""

    views: Sequence[WorkerView]
    fleet_summary: FleetSummary | None


class _Offer(NamedTuple):
    """Masks of the offered workers and of the healthy ones among them. `num_up` is by kind. A prompt shorter than
    `least_context` fits all offered workers."""

    offered: Mask
    up: Mask
    num_offered: int
    num_up: list[int]
    least_context: float
    pools: dict[tuple[int, ...], Mask]
    """Cached subsets of `up` by kinds."""


class Scores:
    """Scores of a fleet as columns with one row a worker. Columns that only break ties are computed on demand."""

    def __init__(
        self, score: Floats, ttft: Floats, usd: Floats, *, finish: Callable[[], Floats], doubt: Callable[[], Floats]
    ) -> None:
        self.score, self.ttft, self.usd = score, ttft, usd
        self._finish, self._doubt = finish, doubt

    @cached_property
    def finish(self) -> Floats:
        return self._finish()

    @cached_property
    def doubt(self) -> Floats:
        return self._doubt()

    def columns(self) -> Iterator[Floats]:
        """Yield the columns in order of preference, without the name."""
        yield self.score
        yield self.finish
        yield self.ttft
        yield self.doubt


class Shortlist:
    """Views of a fleet with at least one worker. Rows are in order of names, so the row breaks ties as the name does."""

    def __init__(self, views: Iterable[WorkerView]) -> None:
        fleet = list(views)
        self._views = sorted(fleet, key=lambda view: view.worker)
        self._row = {view.worker: row for row, view in enumerate(self._views)}
        self._names = list(self._row)
        size = len(self._views)
        self._fleet_order = [view.worker for view in fleet]
        self._numbers = tuple(np.zeros(size) for _ in _NUMBERS)
        self._cells = tuple(column.data for column in self._numbers)
        """The memory of `_numbers`: setting one number there takes a fifth of the time."""
        self._prefill_usd, self._typical = np.zeros(size), np.zeros(size)
        self._healthy = np.zeros(size, dtype=bool)
        self._kinds: dict[tuple[str, str], int] = {}
        self._kind = np.zeros(size, dtype=np.intp)
        self._num_of_kind: list[int] = []
        self._cheapest: list[int | None] = []
        """By kind, the row with the lowest typical dollars. None if unknown."""
        self._offers: dict[tuple[tuple[str, ...], str], _Offer] = {}
        for row, view in enumerate(self._views):
            self._fill(row, view, self._kind_of(view))

    def __len__(self) -> int:
        return len(self._views)

    def put(self, view: WorkerView) -> None:
        """Update the view of a worker of the initial fleet."""
        row = self._row[view.worker]
        old, kind = self._views[row], self._kind_of(view)
        self._num_of_kind[was := int(self._kind[row])] -= 1
        if self._cheapest[was] == row:
            self._cheapest[was] = None
        if kind != was or old.healthy != view.healthy or old.max_context != view.max_context:
            self._offers.clear()
        self._fill(row, view, kind)

    def _kind_of(self, view: WorkerView) -> int:
        kind = self._kinds.setdefault((view.model, view.tier), len(self._kinds))
        if kind == len(self._num_of_kind):
            self._num_of_kind.append(0)
            self._cheapest.append(None)
        return kind

    def _fill(self, row: int, view: WorkerView, kind: int) -> None:
        self._views[row] = view
        for cells, name in zip(self._cells, _NUMBERS, strict=True):
            cells[row] = getattr(view, name)
        self._healthy[row] = view.healthy
        self._prefill_usd[row] = view.prefill_token_usd
        self._kind[row] = kind
        self._num_of_kind[kind] += 1
        typical = self._typical[row] = typical_usd(view)
        best = self._cheapest[kind]
        if best is not None and typical < self._typical[best]:
            self._cheapest[kind] = row

    def take(self, routing_request: RoutingRequest) -> Short:
        """Return the shortlist of a request. If no candidate is open, return all views, as the error or the fallbacks
        depend on all."""
        offer = self._offer(routing_request.candidates, routing_request.asked)
        prompt = self._prompt(routing_request.prompt_tokens)
        open_, num_open, counts = self._open(routing_request, offer, prompt)
        if not any(num_open):
            return Short(self._views, None)
        rows, typical = self._needed(routing_request)
        mistake_usd = routing_request.mistake_cost * typical
        doubts = [1.0 - routing_request.quality.get(tier, 0.0) for _, tier in self._kinds]
        scores = self._scores(routing_request, prompt, doubts, mistake_usd)
        if routing_request.escalations and routing_request.asked == AUTO and routing_request.locked_model is None:
            scores, doubts, restart = self._escalated(routing_request, scores, open_, num_open, doubts, mistake_usd)
            rows.append(restart)
        kinds, of_kinds = self._pool_kinds(routing_request, num_open, doubts)
        pool = self._pool(offer, open_, num_open, kinds)
        best = best_rows(scores, None, MAX_REJECTED + 1)
        # All other rows score worse than these, so if any of these is in the pool, the best of the pool is.
        among = [row for row in best if pool[row]]
        chosen = first_row(scores, among or best_rows(scores, np.flatnonzero(pool), 1))
        rows += [chosen, *best]
        counts |= of_kinds
        risks = [mistake_usd * doubt for doubt in doubts]
        counts |= self._why_not(scores.score, pool, sum(num_open[kind] for kind in kinds), risks, kinds, chosen, best)
        fleet_summary = FleetSummary(sum(num_open), {reason: count for reason, count in counts.items() if count})
        return Short([self._views[row] for row in dict.fromkeys(rows)], fleet_summary)

    def _offer(self, candidates: tuple[str, ...], asked: str) -> _Offer:
        if (known := self._offers.get((candidates, asked))) is not None:
            return known
        kinds = [(model in candidates or tier in candidates) and asked in (AUTO, model, tier) for model, tier in self._kinds]
        offered = np.array(kinds)[self._kind]
        up = offered & self._healthy
        least = float(self._numbers[6][offered].min()) if offered.any() else 0.0
        offer = _Offer(offered, up, int(np.count_nonzero(offered)), self._count(up), least, {})
        if len(self._offers) >= MAX_OFFERS:
            self._offers.clear()
        self._offers[candidates, asked] = offer
        return offer

    def _count(self, rows: Mask) -> list[int]:
        """Return the number of rows by kind."""
        counts: list[int] = np.bincount(self._kind[rows], minlength=len(self._kinds)).tolist()
        return counts

    def _prompt(self, prompt_tokens: Mapping[str, int]) -> Floats | float:
        """Return the prompt tokens by row, -1 for a worker without a tokenized prompt. One number if all are equal."""
        if list(prompt_tokens) == self._fleet_order:
            tokens = list(prompt_tokens.values())
            if tokens.count(tokens[0]) == len(tokens):
                return float(tokens[0])
        return np.array([prompt_tokens.get(name, -1) for name in self._names], dtype=np.float64)

    def _open(
        self, routing_request: RoutingRequest, offer: _Offer, prompt: Floats | float
    ) -> tuple[Mask, list[int], dict[str, int]]:
        """Return the rows that pass the hard filters, their number by kind, and the number of others by reason."""
        not_allowed = len(self) - offer.num_offered
        open_, num_open, num_fit = offer.up, offer.num_up, offer.num_offered
        excluded = [self._row[worker] for worker in routing_request.excluded_workers if worker in self._row]
        if excluded or isinstance(prompt, np.ndarray) or prompt >= offer.least_context:
            fits = offer.offered & (prompt < self._numbers[6])
            num_fit = int(np.count_nonzero(fits))
            open_ = fits & offer.up & (prompt >= 0.0)
            open_[excluded] = False
            num_open = self._count(open_)
        counts = {
            "not_allowed": not_allowed,
            "context_too_long": offer.num_offered - num_fit,
            "not_healthy": num_fit - sum(num_open),
        }
        return open_, num_open, counts

    def _needed(self, routing_request: RoutingRequest) -> tuple[list[int], float]:
        """Return the rows that `decide` needs in any case, and the typical dollars: the warm worker's row and that of the
        typical request."""
        warm = self._row.get(routing_request.warm_worker or "")
        rows = [] if warm is None else [warm]
        quality = routing_request.quality
        known = {kind: quality[tier] for (_, tier), kind in self._kinds.items() if tier in quality and self._num_of_kind[kind]}
        if routing_request.asked != AUTO or not known:
            return rows, 0.0
        best = max(known.values())
        cheapest = [self._cheapest_of(kind) for kind, its in known.items() if its == best]
        typical, row = min((float(self._typical[row]), row) for row in cheapest)
        return [*rows, row], typical

    def _cheapest_of(self, kind: int) -> int:
        row = self._cheapest[kind]
        if row is None:
            row = self._cheapest[kind] = int(np.where(self._kind == kind, self._typical, np.inf).argmin())
        return row

    def _scores(
        self, routing_request: RoutingRequest, prompt: Floats | float, doubts: Sequence[float], mistake_usd: float
    ) -> Scores:
        wait, overhead, prefill, tpot, decode, price, _ = self._numbers
        uncached = np.maximum(prompt, 0.0) if isinstance(prompt, np.ndarray) else prompt
        prefill_s = prefill * uncached
        for worker, tokens in routing_request.cached_tokens.items():
            if (row := self._row.get(worker)) is not None:
                its = float(uncached[row]) if isinstance(uncached, np.ndarray) else uncached
                prefill_s[row] = (its - min(tokens, max(0.0, its - 1))) * prefill[row]
        output = min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
        ttft = wait + overhead
        ttft += prefill_s
        usd = prefill_s
        usd += overhead
        usd += output * decode
        usd *= price
        score = usd + self._switch(routing_request)
        if mistake_usd:
            score += np.array([mistake_usd * doubt for doubt in doubts])[self._kind]
        scores = Scores(score, ttft, usd, finish=lambda: ttft + output * tpot, doubt=lambda: np.array(doubts)[self._kind])
        if routing_request.miss_penalty_usd:
            finish = scores.finish if routing_request.deadline_s is not None else ttft
            score += routing_request.miss_penalty_usd * missed(routing_request, ttft, finish)
        return scores

    def _switch(self, routing_request: RoutingRequest) -> Floats | float:
        """Return the dollars of leaving the warm worker."""
        row = self._row.get(routing_request.warm_worker or "")
        if row is None or not self._healthy[row] or self._names[row] not in routing_request.prompt_tokens:
            return 0.0
        worker = self._names[row]
        uncached = routing_request.prompt_tokens[worker] - routing_request.cached_tokens.get(worker, 0)
        missing = uncached + min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
        token_usd = float(self._prefill_usd[row])
        usd = min(1.0, routing_request.expected_remaining_turns) * max(0.0, missing) * token_usd
        if not usd:
            return 0.0
        switch: Floats = (self._prefill_usd >= token_usd) * np.float64(usd)
        switch[row] = 0.0
        return switch

    def _escalated(
        self,
        routing_request: RoutingRequest,
        scores: Scores,
        open_: Mask,
        num_open: Sequence[int],
        doubts: Sequence[float],
        mistake_usd: float,
    ) -> tuple[Scores, list[float], int]:
        """Return the scores with the effect of escalation, the remaining doubts by kind, and the row of the restart."""
        _, _, _, tpot, decode, price, _ = self._numbers
        least = min(doubt for doubt, count in zip(doubts, num_open, strict=True) if count)
        restart = int(np.where(open_ & (scores.doubt == least), scores.usd, np.inf).argmin())
        output = min(routing_request.expected_output_tokens, routing_request.max_output_tokens)
        score, finish, ttft = scores.score.copy(), scores.finish.copy(), scores.ttft.copy()
        doubt, usd = scores.doubt.copy(), scores.usd.copy()
        left, switch = list(doubts), self._switch(routing_request)
        plans = plans_for(routing_request, best=1.0 - least, restart_usd=float(scores.usd[restart]), mistake_usd=mistake_usd)
        for (_, tier), kind in self._kinds.items():
            plan = plans.get(tier)
            if plan is None or not num_open[kind] or doubts[kind] <= least:
                continue
            of_kind = np.flatnonzero(open_ & (self._kind == kind))
            holdback = min(float(plan.tokens), output)
            quality = 1.0 - doubts[kind]
            chance = plan.chance(quality)
            was_usd, was_ttft, was_finish = scores.usd[of_kind], scores.ttft[of_kind], scores.finish[of_kind]
            holdback_usd = was_usd - price[of_kind] * (output - holdback) * decode[of_kind]
            holdback_s = holdback * tpot[of_kind]
            usd[of_kind] = (1.0 - chance) * was_usd + chance * (holdback_usd + scores.usd[restart])
            finish[of_kind] = (1.0 - chance) * was_finish + chance * (was_ttft + holdback_s + scores.finish[restart])
            ttft[of_kind] = was_ttft + holdback_s + chance * scores.ttft[restart]
            left[kind] = 1.0 - plan.quality_after(quality)
            doubt[of_kind] = left[kind]
            leaving = switch[of_kind] if isinstance(switch, np.ndarray) else switch
            penalty = routing_request.miss_penalty_usd * missed(routing_request, ttft[of_kind], finish[of_kind])
            score[of_kind] = usd[of_kind] + leaving + mistake_usd * left[kind] + penalty
        return Scores(score, ttft, usd, finish=lambda: finish, doubt=lambda: doubt), left, restart

    def _pool(self, offer: _Offer, open_: Mask, num_open: Sequence[int], kinds: list[int]) -> Mask:
        """Return the open rows of these kinds."""
        if len(kinds) == len(num_open) - num_open.count(0):
            return open_
        known = offer.pools.get(tuple(kinds)) if open_ is offer.up else None
        if known is None:
            of_kinds = np.zeros(len(self._kinds), dtype=bool)
            of_kinds[kinds] = True
            known = open_ & of_kinds[self._kind]
            if open_ is offer.up and len(offer.pools) < MAX_OFFERS:
                offer.pools[tuple(kinds)] = known
        return known

    def _pool_kinds(
        self, routing_request: RoutingRequest, num_open: Sequence[int], doubts: Sequence[float]
    ) -> tuple[list[int], dict[str, int]]:
        """Return the kinds from which the lowest score wins, and the number of excluded rows by reason."""
        present = [kind for kind, count in enumerate(num_open) if count]
        contenders = present
        if routing_request.locked_model is not None:
            models = [model for model, _ in self._kinds]
            contenders = [kind for kind in present if models[kind] == routing_request.locked_model] or present
        judged = contenders is present and routing_request.asked == AUTO and routing_request.quality
        bar = routing_request.quality_bar if judged else 0.0
        kinds = [kind for kind in contenders if 1.0 - doubts[kind] >= bar]
        if not kinds:
            least = min(doubts[kind] for kind in contenders)
            kinds = [kind for kind in contenders if doubts[kind] == least]
        num_contenders = sum(num_open[kind] for kind in contenders)
        counts = {
            "locked_elsewhere": sum(num_open) - num_contenders,
            "below_quality_bar": num_contenders - sum(num_open[kind] for kind in kinds),
        }
        return kinds, counts

    def _why_not(
        self,
        score: Floats,
        pool: Mask,
        size: int,
        risks: Sequence[float],
        kinds: Sequence[int],
        chosen: int,
        best: Sequence[int],
    ) -> dict[str, int]:
        """Return the number of rejected rows of the pool by reason. The pool has `size` rows, of `kinds`."""
        chosen_usd, chosen_risk = float(score[chosen]), risks[int(self._kind[chosen])]
        tolerance = SAME_COST * abs(chosen_usd)
        risky = [kind for kind in kinds if risks[kind] > chosen_risk]  # only these may score less without their risk
        if not risky and max(map(score.item, best)) - chosen_usd > tolerance:  # then every row that is not in `best` costs more
            num_same = sum(pool.item(row) and score.item(row) - chosen_usd <= tolerance for row in best)
            num_same += chosen not in best
            return {"slower_same_cost": num_same - 1, "costs_more": size - num_same}
        same = score - chosen_usd <= tolerance
        same &= pool
        num_same, num_risky = int(np.count_nonzero(same)), 0
        for kind in risky:
            more = (score - risks[kind] < chosen_usd - chosen_risk) & pool & ~same
            num_risky += int(np.count_nonzero(more & (self._kind == kind)))
        return {
            "slower_same_cost": num_same - 1,  # without the chosen one
            "too_risky": num_risky,
            "costs_more": size - num_same - num_risky,
        }


def missed(routing_request: RoutingRequest, ttft: Floats, finish: Floats) -> Floats | float:
    on_time = 1.0 - _miss(ttft, routing_request.ttft_slo_s)
    if routing_request.deadline_s is not None:
        on_time = on_time * (1.0 - _miss(finish, routing_request.deadline_s))
    return 1.0 - on_time


def _miss(predicted: Floats, slo_s: float | None) -> Floats | float:
    if slo_s is None:
        return 0.0
    later = predicted > 0
    if slo_s <= 0:
        return later.astype(np.float64)
    ratio = slo_s / (predicted if (all_later := later.all()) else np.where(later, predicted, 1.0))
    np.minimum(ratio, 1e6, out=ratio)
    ratio *= ratio
    ratio *= ratio
    ratio += 1.0
    np.divide(1.0, ratio, out=ratio)
    return ratio if all_later else np.where(later, ratio, 0.0)


def best_rows(scores: Scores, rows: Rows | None, count: int) -> list[int]:
    """Return the best `count` of `rows` (None for all), in any order. The next column breaks ties."""
    best: list[int] = []
    for column in scores.columns():
        values = column if rows is None else column.take(rows)
        wanted = count - len(best)
        if len(values) <= wanted:
            break
        last = values.min()  # enough if many rows equal the minimum
        equal = (values == last).nonzero()[0]
        if len(equal) < wanted:
            last = np.partition(values, wanted - 1)[wanted - 1]
            less = (values < last).nonzero()[0]
            best += (less if rows is None else rows.take(less)).tolist()
            wanted = count - len(best)
            equal = (values == last).nonzero()[0]
        rows = equal if rows is None else rows.take(equal)
        if len(rows) == wanted:
            break
    left = range(len(scores.score)) if rows is None else rows.tolist()
    best += left[: count - len(best)]
    return best


def first_row(scores: Scores, rows: list[int]) -> int:
    """Return the best of a few rows."""
    for column in scores.columns():
        if len(rows) == 1:
            break
        values = [column.item(row) for row in rows]
        lowest = min(values)
        rows = [row for row, value in zip(rows, values, strict=True) if value == lowest]
    return min(rows)
