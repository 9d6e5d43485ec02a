"""Guesses for a step that only decodes, from what was read and said before or from a draft model, where measured costs say
they save.

Tokens are chosen as without guesses, from (seed, position), and a guess is kept if it is what was chosen: the text is the same.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

from backends.engine.scheduler import Scheduler
from backends.engine.sequence import RequestSequence
from backends.engine.step_cost_model import Caused, StepCostModel
from backends.engine.work import Work
from backends.spec_decode.acceptance import AcceptanceStats, Guess
from backends.spec_decode.draft_length import MAX_DRAFTS, ProposalGain, best_count, draft_cost, is_hopeless, may_guess, saved
from backends.spec_decode.draft_model import DraftModel
from backends.spec_decode.state import FORGETTING, LEARNING, AcceptanceRate, DraftCost, Guesses

Source = Literal["lookup", "draft"]
ASKING_S = 3e-5
"""What asking whether a draft pays takes, about."""
SLOW = 0.1
"""A new sequence hopes for what the others saw, which is learned and forgotten at this part of a sequence's rate."""


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
        self,
        scheduler: Scheduler,
        step_cost: StepCostModel,
        *,
        kv_bytes: int,
        clock_ns: Callable[[], int],
        lookup: bool,
        drafter: DraftModel | None = None,
    ) -> None:
        self.tallies: dict[Source, Tally] = {}
        if lookup:
            self.tallies["lookup"] = Tally()
        if drafter is not None:
            self.tallies["draft"] = Tally()
        self._scheduler, self._step_cost, self._kv_bytes, self._drafter = scheduler, step_cost, kv_bytes, drafter
        self._acceptance = AcceptanceStats(clock_ns) if lookup else None
        self._looking, self._drafting = ProposalGain(), ProposalGain()
        self._hope = AcceptanceRate()
        self._draft_s: dict[int, float] = {}
        """What a guessed token takes, by the bits of the number of sequences."""

    def with_drafts(self, work: tuple[Work, ...]) -> tuple[Work, ...]:
        """The same work with guesses behind the tokens of some; a step with chunks gets none."""
        if any(one.length > 1 or not one.samples for one in work):
            return work
        look_up = self._acceptance is not None and self._looking.is_worthwhile(len(work), self._acceptance.search_s)
        draft = self._drafter is not None and self._drafting.is_worthwhile(len(work), ASKING_S)
        if not look_up and not draft:
            return work
        context = sum(one.stop for one in work) / len(work)
        of = self._price(len(work), context)
        if is_hopeless(of):
            self._looking.observe(len(work), 0.0)
            self._drafting.observe(len(work), 0.0)
            return work
        guessed, plans = list(work), list[_Plan]()
        for at, one in enumerate(work):
            guesses = self._guesses(one.sequence)
            if guesses.allowed:
                guesses.draft_cost, guesses.num_sequences = of, len(work)
                looked_up = self._looked_up(one.sequence, of, len(work)) if look_up else None
                saves = looked_up.saves if looked_up else 0.0
                plan = self._planned(at, one, guesses, of, len(work), context, saves) if draft else None
                if plan is not None:
                    plans.append(plan)
                elif looked_up:
                    guessed[at] = self._with(one, guesses, looked_up)
        if plans and self._drafter is not None:
            told = self._drafter.guess([(plan.work.sequence, plan.count) for plan in plans])
            for plan, drafts in zip(plans, told, strict=True):
                guessed[plan.at] = plan.work._replace(drafts=drafts)
        return tuple(guessed)

    def _price(self, num_sequences: int, context: float) -> DraftCost:
        """By the fit, until steps with guesses were measured at about this size."""
        of = draft_cost(self._step_cost.cost, num_sequences, context, self._kv_bytes)
        size = num_sequences.bit_length()
        known = self._draft_s.get(size)
        if known is None:
            return of
        of = of._replace(draft=known, first=0.0)
        if is_hopeless(of):  # what is no longer measured is tried again some time
            self._draft_s[size] *= 1.0 - FORGETTING / 10
        return of

    def measured(self, plain: SequenceOf[Caused], num_drafts: int, spent_s: float) -> None:
        """A step of this work without its guesses, and how many it had: they take more than the fit expects, which knows the
        tokens of a prompt, computed by the hundred."""
        size, took_s = len(plain).bit_length(), max(0.0, spent_s - self._step_cost.expected(plain)) / num_drafts
        self._draft_s[size] = took_s if size not in self._draft_s else 0.9 * self._draft_s[size] + 0.1 * took_s

    def learn(self, work: Work, accepted: int) -> None:
        """So many of the guesses of this work were right."""
        guesses, drafted = work.sequence.guesses, len(work.drafts)
        if not drafted or guesses is None:
            return
        if guesses.evidence is not None and self._acceptance is not None:
            self._acceptance.learn(guesses.evidence, drafted, accepted)
            self._looking.observe(
                guesses.num_sequences, accepted * guesses.draft_cost.token - drafted * guesses.draft_cost.draft
            )
        else:
            guesses.draft.learn(drafted, accepted)
            self._hope.learn(drafted, accepted, SLOW * LEARNING)
        tally = self.tallies["draft" if guesses.evidence is None else "lookup"]
        tally.drafted += drafted
        tally.accepted += accepted

    def finished(self, sequence: RequestSequence) -> None:
        if self._acceptance is not None:
            self._acceptance.finished(sequence)

    def _guesses(self, sequence: RequestSequence) -> Guesses:
        if sequence.guesses is None:
            sequence.guesses = Guesses(may_guess(sequence.sampling), AcceptanceRate(self._hope.value))
        return sequence.guesses

    def _looked_up(self, sequence: RequestSequence, of: DraftCost, num_sequences: int) -> Guess | None:
        assert self._acceptance
        found = self._acceptance.guess(sequence, of)
        if found is None:
            self._looking.observe(num_sequences, 0.0)
        return found

    def _with(self, work: Work, guesses: Guesses, guess: Guess) -> Work:
        guesses.evidence = guess.evidence
        return work._replace(drafts=guess.tokens[: self._scheduler.can_allocate_drafts(work, len(guess.tokens))])

    def _planned(
        self, at: int, work: Work, guesses: Guesses, of: DraftCost, num_sequences: int, context: float, otherwise: float
    ) -> _Plan | None:
        """For the draft model, where that promises to save more than `otherwise`."""
        if self._drafter is None or len(work.sequence.tokens) + MAX_DRAFTS > self._drafter.longest:
            return None
        acceptance_rate = guesses.draft
        of = self._drafter.priced(of, work.sequence, num_sequences, context)
        count = best_count(acceptance_rate.value, of)
        self._drafting.observe(num_sequences, saved(acceptance_rate.value, of, count) if count else 0.0)
        if not count:
            acceptance_rate.forget()
            self._hope.forget(SLOW * FORGETTING)
        if not count or saved(acceptance_rate.value, of, count) <= otherwise:
            return None
        count = self._scheduler.can_allocate_drafts(work, count)
        guesses.evidence = None
        return _Plan(at, work, count) if count else None
