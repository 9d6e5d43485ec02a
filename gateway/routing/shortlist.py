"""The few workers of a large fleet among which `decide` gives what it would give among all: the same choice, the same best
rejected ones, and how many the others are by reason. Pure; the views are kept as columns, one row a worker, changed one
row at a time. A test holds it equal to deciding among all, number for number: every line here has its twin in `decide`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.routing.decide import AUTO, SAME_COST, Whole, holds_for, typical_usd
from gateway.routing.decision import MAX_REJECTED, Question, WorkerView

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]
Holds = Callable[[str, str], bool]

_NUMBERS = ("wait_s", "overhead_s", "prefill_s_per_token", "tpot_s", "decode_device_s_per_token", "usd_per_s", "max_context")


class Short(NamedTuple):
    """`whole` is None when the views are all there are."""

    views: Sequence[WorkerView]
    whole: Whole | None


class _Scores(NamedTuple):
    """By row; in the order in which candidates are preferred, but for the name."""

    score: Floats
    finish: Floats
    ttft: Floats
    doubt: Floats
    usd: Floats
    risk: Floats


class Shortlist:
    """The views of a fleet that has workers. Rows keep the order of names: the row settles what is equal, as the name does."""

    def __init__(self, views: Iterable[WorkerView]) -> None:
        given = list(views)
        self._views = sorted(given, key=lambda view: view.worker)
        self._row = {view.worker: row for row, view in enumerate(self._views)}
        self._names = list(self._row)
        size = len(self._views)
        self._all = np.arange(size)
        self._given = [view.worker for view in given]
        self._numbers = np.zeros((len(_NUMBERS), size))
        self._healthy = np.zeros(size, dtype=bool)
        self._typical = np.zeros(size)
        self._kinds: dict[tuple[str, str], int] = {}
        self._kind = np.zeros(size, dtype=np.intp)
        for view in self._views:
            self.put(view)

    def __len__(self) -> int:
        return len(self._views)

    def put(self, view: WorkerView) -> None:
        """What is known of a worker now; it was there from the start."""
        row = self._row[view.worker]
        self._views[row] = view
        self._numbers[:, row] = [getattr(view, name) for name in _NUMBERS]
        self._healthy[row] = view.healthy
        self._typical[row] = typical_usd(view)
        self._kind[row] = self._kinds.setdefault((view.model, view.tier), len(self._kinds))

    def take(self, question: Question) -> Short:
        """All of them when no candidate is open: what to say then, or to fall back on, shows only among all."""
        prompt = self._prompt(question.prompt_tokens)
        offered = self._by_kind(lambda model, tier: _offered(question, model, tier))
        fits = prompt < self._numbers[6]
        up = self._healthy & (prompt >= 0)
        for worker in question.excluded_workers:
            if worker in self._row:
                up[self._row[worker]] = False
        open_ = offered & fits & up
        num_open = int(np.count_nonzero(open_))
        if num_open == 0:
            return Short(self._views, None)
        rows, typical = self._needed(question)
        scores = self._scores(question, np.maximum(prompt, 0.0), typical)
        if question.escalations and question.asked == AUTO and question.locked_model is None:
            scores, anew = self._escalated(question, scores, open_)
            rows.append(anew)
        contenders, locked = open_, False
        if question.locked_model is not None:
            inside = open_ & self._by_kind(lambda model, _: model == question.locked_model)
            if inside.any():
                contenders, locked = inside, True
        bar = question.quality_bar if not locked and question.asked == AUTO and question.quality else 0.0
        below = contenders & (1.0 - scores.doubt < bar)
        pool = contenders & ~below
        if not pool.any():
            pool = contenders & (scores.doubt == scores.doubt[contenders].min())
            below = contenders & ~pool
        best = _best(scores, self._all, MAX_REJECTED + 1)
        # Whoever is not among the best is behind all of them, so the best of the pool is among them if any of it is.
        (chosen,) = _best(scores, np.array([row for row in best if pool[row]], dtype=np.intp), 1) or _best(
            scores, np.flatnonzero(pool), 1
        )
        rows += [chosen, *best]
        counts: dict[str, int] = {
            "not_allowed": int(np.count_nonzero(~offered)),
            "context_too_long": int(np.count_nonzero(offered & ~fits)),
            "not_healthy": int(np.count_nonzero(offered & fits & ~up)),
            "locked_elsewhere": num_open - int(np.count_nonzero(contenders)),
            "below_quality_bar": int(np.count_nonzero(below)),
        }
        counts |= _why_not(scores, np.flatnonzero(pool), chosen)
        whole = Whole(num_open, {reason: count for reason, count in counts.items() if count})
        return Short([self._views[row] for row in dict.fromkeys(rows)], whole)

    def _prompt(self, prompt_tokens: Mapping[str, int]) -> Floats:
        """By row; -1 for a worker that the prompt was not made for."""
        if list(prompt_tokens) == self._given and len(values := set(prompt_tokens.values())) == 1:
            return np.full(len(self), float(values.pop()))
        return np.array([prompt_tokens.get(name, -1) for name in self._names], dtype=np.float64)

    def _by_kind(self, holds: Holds) -> Mask:
        return np.array([holds(model, tier) for model, tier in self._kinds])[self._kind]

    def _needed(self, question: Question) -> tuple[list[int], float]:
        """Rows that `decide` looks at whoever wins: the warm worker's, and that of the typical request; and its dollars."""
        warm = self._row.get(question.warm_worker or "")
        rows = [] if warm is None else [warm]
        known = [question.quality[tier] for _, tier in self._kinds if tier in question.quality]
        if question.asked != AUTO or not known:
            return rows, 0.0
        best = max(known)
        of_best = self._by_kind(lambda _, tier: question.quality.get(tier, -1.0) == best)
        cheapest = int(np.where(of_best, self._typical, np.inf).argmin())
        return [*rows, cheapest], float(self._typical[cheapest])

    def _scores(self, question: Question, prompt: Floats, typical: float) -> _Scores:
        wait, overhead, prefill, tpot, decode, price, _ = self._numbers
        cached = np.zeros(len(self))
        for worker, tokens in question.cached_tokens.items():
            if worker in self._row:
                row = self._row[worker]
                cached[row] = min(tokens, max(0.0, prompt[row] - 1))
        output = min(question.expected_output_tokens, question.max_output_tokens)
        prefill_s = (prompt - cached) * prefill
        ttft = wait + overhead + prefill_s
        finish = ttft + output * tpot
        usd = price * (overhead + prefill_s + output * decode)
        doubt = np.array([1.0 - question.quality.get(tier, 0.0) for _, tier in self._kinds])[self._kind]
        risk = question.mistake_cost * typical * doubt
        score = usd + self._switch(question) + risk + question.miss_penalty_usd * _missed(question, ttft, finish)
        return _Scores(score, finish, ttft, doubt, usd, risk)

    def _switch(self, question: Question) -> Floats | float:
        """What leaving the warm worker costs."""
        row = self._row.get(question.warm_worker or "")
        if row is None or not self._healthy[row] or self._names[row] not in question.prompt_tokens:
            return 0.0
        _, _, prefill, _, _, price, _ = self._numbers
        worker = self._names[row]
        uncached = question.prompt_tokens[worker] - question.cached_tokens.get(worker, 0)
        missing = uncached + min(question.expected_output_tokens, question.max_output_tokens)
        token_usd = price * prefill
        usd = min(1.0, question.expected_remaining_turns) * max(0.0, missing) * float(token_usd[row])
        switch = np.where(token_usd >= token_usd[row], usd, 0.0)
        switch[row] = 0.0
        return switch

    def _escalated(self, question: Question, scores: _Scores, open_: Mask) -> tuple[_Scores, int]:
        """With what beginning anew adds; and the row on which it begins."""
        _, _, _, tpot, decode, price, _ = self._numbers
        least = scores.doubt[open_].min()
        anew = int(np.where(open_ & (scores.doubt == least), scores.usd, np.inf).argmin())
        output = min(question.expected_output_tokens, question.max_output_tokens)
        score, finish, ttft, doubt, usd, risk = (column.copy() for column in scores)
        typical_risk = question.mistake_cost * self._needed(question)[1]
        switch = self._switch(question)
        best, anew_usd = 1.0 - float(least), float(scores.usd[anew])
        holds = holds_for(question, best=best, anew_usd=anew_usd, mistake_usd=typical_risk)
        for (_, tier), kind in self._kinds.items():
            of_kind = np.flatnonzero(open_ & (self._kind == kind) & (scores.doubt > least))
            hold = holds.get(tier)
            if hold is None or not len(of_kind):
                continue
            held = min(float(hold.tokens), output)
            quality = 1.0 - float(scores.doubt[of_kind[0]])
            chance = hold.chance(quality)
            was_usd, was_ttft, was_finish = scores.usd[of_kind], scores.ttft[of_kind], scores.finish[of_kind]
            held_usd = was_usd - price[of_kind] * (output - held) * decode[of_kind]
            held_s = held * tpot[of_kind]
            usd[of_kind] = (1.0 - chance) * was_usd + chance * (held_usd + scores.usd[anew])
            finish[of_kind] = (1.0 - chance) * was_finish + chance * (was_ttft + held_s + scores.finish[anew])
            ttft[of_kind] = was_ttft + held_s + chance * scores.ttft[anew]
            doubt[of_kind] = 1.0 - hold.quality_after(quality)
            risk[of_kind] = typical_risk * doubt[of_kind]
            left = switch[of_kind] if isinstance(switch, np.ndarray) else switch
            missed = _missed(question, ttft[of_kind], finish[of_kind])
            score[of_kind] = usd[of_kind] + left + risk[of_kind] + question.miss_penalty_usd * missed
        return _Scores(score, finish, ttft, doubt, usd, risk), anew


def _offered(question: Question, model: str, tier: str) -> bool:
    return (model in question.candidates or tier in question.candidates) and question.asked in (AUTO, model, tier)


def _missed(question: Question, ttft: Floats, finish: Floats) -> Floats | float:
    late = _miss(ttft, question.ttft_slo_s)
    return 1.0 - (1.0 - late) * (1.0 - _miss(finish, question.deadline_s))


def _miss(predicted: Floats, promised_s: float | None) -> Floats | float:
    if promised_s is None:
        return 0.0
    later = predicted > 0
    if promised_s <= 0:
        return later.astype(np.float64)
    ratio = np.minimum(promised_s / np.where(later, predicted, 1.0), 1e6)
    square = ratio * ratio
    return np.where(later, 1.0 / (1.0 + square * square), 0.0)


def _best(scores: _Scores, rows: Rows, count: int) -> list[int]:
    """The first rows as candidates are preferred, in any order: what is equal in one column is told apart by the next."""
    found: list[int] = []
    for column in scores[:4]:
        wanted = count - len(found)
        if len(rows) <= wanted:
            break
        values = column[rows] if len(rows) < len(column) else column
        last = np.partition(values, wanted - 1)[wanted - 1]
        within = values <= last
        rows, values = rows[within], values[within]
        if len(rows) == wanted:
            break
        found += rows[values < last].tolist()
        rows = rows[values == last]
    found += rows[: count - len(found)].tolist()
    return found


def _why_not(scores: _Scores, rows: Rows, chosen: int) -> dict[str, int]:
    score, risk = scores.score[rows], scores.risk[rows]
    chosen_usd, chosen_risk = scores.score[chosen], scores.risk[chosen]
    same = score - chosen_usd <= SAME_COST * abs(chosen_usd)
    risky = ~same & (score - risk < chosen_usd - chosen_risk)
    num_same, num_risky = int(np.count_nonzero(same)), int(np.count_nonzero(risky))
    return {
        "slower_same_cost": num_same - 1,  # the chosen one is as dear as itself
        "too_risky": num_risky,
        "costs_more": len(rows) - num_same - num_risky,
    }
