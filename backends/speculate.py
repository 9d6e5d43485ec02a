"""Guesses for a step that only decodes, from what was read before or from a draft model, where measured costs say they save.

Tokens are chosen as without guesses, from (seed, position), and a guess is kept if it is what was chosen: the text is the same.
"""

from dataclasses import dataclass
from typing import Literal

from backends.draft import Drafter
from backends.gate import FORGETTING, LEARNING, MAX_DRAFTS, Chance, Price, best_count, may_guess, price, saved
from backends.lookup import Lookup
from backends.scheduler import Scheduler, Work
from backends.sequence import Sequence
from backends.step_cost import StepCost

Source = Literal["lookup", "draft"]
SLOW = 0.1
"""A new sequence hopes for what the others saw, which is learned and forgotten at this part of a sequence's rate."""


@dataclass(slots=True)
class Guesses:
    """Of one sequence. `source` is where those of this step are from."""

    lookup: Lookup
    chances: dict[Source, Chance]
    source: Source = "lookup"


@dataclass(slots=True)
class Tally:
    """Tokens that were guessed, and those of them that turned out right."""

    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class _Plan:
    """`count` guesses of the draft model for `work`, whose pages have room for them."""

    at: int
    work: Work
    count: int


class Speculator:
    """`kv_bytes` are those of one token of the model that is guessed for."""

    def __init__(
        self, scheduler: Scheduler, step_cost: StepCost, *, kv_bytes: int, lookup: bool, drafter: Drafter | None = None
    ) -> None:
        self.tallies: dict[Source, Tally] = {}
        if lookup:
            self.tallies["lookup"] = Tally()
        if drafter is not None:
            self.tallies["draft"] = Tally()
        self._scheduler, self._step_cost, self._kv_bytes, self._drafter = scheduler, step_cost, kv_bytes, drafter
        self._hopes: dict[Source, Chance] = {source: Chance() for source in self.tallies}

    def with_drafts(self, work: tuple[Work, ...]) -> tuple[Work, ...]:
        """The same work with guesses behind the tokens of some; a step with chunks gets none."""
        if any(one.length > 1 or not one.samples for one in work):
            return work
        context = sum(one.stop for one in work) / len(work)
        of = price(self._step_cost.cost, len(work), context, self._kv_bytes)
        guessed, plans = list(work), list[_Plan]()
        for at, one in enumerate(work):
            if may_guess(one.sequence.sampling):
                guesses = self._guesses(one.sequence)
                drafts, lookup_saves = self._look_up(one, guesses, of)
                plan = self._planned(at, one, guesses, of, len(work), context, lookup_saves)
                if plan is not None:
                    plans.append(plan)
                elif drafts:
                    guesses.source = "lookup"
                    guessed[at] = one._replace(drafts=drafts[: self._scheduler.room_for_drafts(one, len(drafts))])
        if plans and self._drafter is not None:
            told = self._drafter.guess([(plan.work.sequence, plan.count) for plan in plans])
            for plan, drafts in zip(plans, told, strict=True):
                guessed[plan.at] = plan.work._replace(drafts=drafts)
        return tuple(guessed)

    def learn(self, work: Work, accepted: int) -> None:
        """So many of the guesses of this work were right."""
        guesses, drafted = work.sequence.guesses, len(work.drafts)
        if not drafted or guesses is None:
            return
        guesses.chances[guesses.source].learn(drafted, accepted)
        self._hopes[guesses.source].learn(drafted, accepted, SLOW * LEARNING)
        tally = self.tallies[guesses.source]
        tally.drafted += drafted
        tally.accepted += accepted

    def _guesses(self, sequence: Sequence) -> Guesses:
        if sequence.guesses is None:
            chances = {source: Chance(hope.value) for source, hope in self._hopes.items()}
            sequence.guesses = Guesses(Lookup(), chances)
        return sequence.guesses

    def _look_up(self, work: Work, guesses: Guesses, of: Price) -> tuple[tuple[int, ...], float]:
        """What followed before, and the seconds that it promises to save."""
        chance = guesses.chances.get("lookup")
        if chance is None:
            return (), 0.0
        count = self._count("lookup", chance, of)
        drafts = guesses.lookup.guess(work.sequence.tokens, count) if count else ()
        return drafts, saved(chance.value, of, len(drafts)) if drafts else 0.0

    def _planned(
        self, at: int, work: Work, guesses: Guesses, of: Price, num_sequences: int, context: float, otherwise: float
    ) -> _Plan | None:
        """For the draft model, where that promises to save more than `otherwise`."""
        chance = guesses.chances.get("draft")
        if self._drafter is None or chance is None or len(work.sequence.tokens) + MAX_DRAFTS > self._drafter.longest:
            return None
        of = self._drafter.priced(of, work.sequence, num_sequences, context)
        count = self._count("draft", chance, of)
        if not count or saved(chance.value, of, count) <= otherwise:
            return None
        count = self._scheduler.room_for_drafts(work, count)
        guesses.source = "draft"
        return _Plan(at, work, count) if count else None

    def _count(self, source: Source, chance: Chance, of: Price) -> int:
        count = best_count(chance.value, of)
        if not count:
            chance.forget()
            self._hopes[source].forget(SLOW * FORGETTING)
        return count
