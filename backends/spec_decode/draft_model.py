"""A small model of the same tokenizer guesses what a large one will say. It changes nothing but how many steps that takes.

Its KV has a page for each page of the engine's pool, under the same number, so a sequence's pages are those of both:

    pages of a sequence    [ draft KV is there ......... ) lag: computed when it is asked to guess | its own guesses ]

What it has of a page is known by the page's name, which means the same tokens. A page that came from elsewhere, or was decoded
without guesses, is computed when a guess is wanted.
"""

import copy
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from backends.engine.sequence import RequestSequence
from backends.engine.step_cost_model import Caused, StepCostModel
from backends.engine.work import Runner, Sampled, Work
from backends.spec_decode.state import DraftCost, Drafted

SPREAD_TOKENS = 64
"""Catching up is an investment in about so many tokens to come."""


class DraftModel:
    """`runner` computes the draft model over a KV of `num_pages` pages, and knows `longest` positions. At most `most_tokens` a
    pass catch up. `kv_bytes` are those of one token of the draft."""

    def __init__(
        self,
        runner: Runner,
        *,
        num_pages: int,
        page_size: int,
        most_tokens: int,
        longest: int,
        kv_bytes: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self.longest = longest
        self.step_cost = StepCostModel()
        self._runner, self._clock_ns = runner, clock_ns
        self._size, self._most, self._kv_bytes = page_size, most_tokens, kv_bytes
        self._page_hashes = [b""] * num_pages
        """What each page's draft KV is of; empty where that has no name."""

    def priced(self, of: DraftCost, sequence: RequestSequence, num_sequences: int, context: float) -> DraftCost:
        """The price of guesses with what making them costs, one pass for each and the catching up."""
        cost = self.step_cost.cost
        a_pass = cost.step / num_sequences + cost.row + cost.mixed * context + cost.kv_byte * context * self._kv_bytes
        lag = len(sequence.tokens) - self.resident(sequence) - 1
        spread = max(1, min(SPREAD_TOKENS, sequence.limit - len(sequence.tokens)))
        return of._replace(draft=of.draft + a_pass, first=of.first + (cost.chunk if lag else 0.0) + lag * cost.token / spread)

    def resident(self, sequence: RequestSequence) -> int:
        """Leading tokens whose draft KV is there; never the last one, which is computed to guess the next."""
        drafted = sequence.drafted
        valid = drafted.valid(sequence.tokens, sequence.pages) if drafted else 0
        if drafted and valid:
            for i in range(valid // self._size, 0, -1):  # pages that were confirmed since they were computed
                if i > len(sequence.page_hashes):
                    continue
                page, name = sequence.pages[i - 1], sequence.page_hashes[i - 1]
                if self._page_hashes[page] == name:
                    break
                self._page_hashes[page] = name
        else:
            for page, name in zip(sequence.pages, sequence.page_hashes, strict=False):
                if self._page_hashes[page] != name:
                    break
                valid += self._size
        return min(valid, len(sequence.tokens) - 1)

    def guess(self, wanted: SequenceOf[tuple[RequestSequence, int]]) -> list[tuple[int, ...]]:
        """Up to so many tokens to come for each, whose pages have room for them; none for those that still catch up."""
        shadows = [copy.copy(sequence) for sequence, _ in wanted]
        starts = [self.resident(sequence) for sequence, _ in wanted]
        told: list[list[int]] = [[] for _ in wanted]
        for shadow in shadows:
            shadow.tokens = shadow.tokens[:]
        for number in range(max((count for _, count in wanted), default=0)):
            asked = [i for i, (_, count) in enumerate(wanted) if number < count and len(told[i]) == number]
            chosen, work = self._work(asked, shadows, starts)
            for i, one, found in zip(chosen, work, self._run(work), strict=True):
                starts[i] += one.length
                for sampled in found:
                    told[i].append(sampled.token)
                    shadows[i].tokens.append(sampled.token)
        for (sequence, _), computed, tokens in zip(wanted, starts, told, strict=True):
            pages = sequence.pages[: -(-computed // self._size)]
            sequence.drafted = Drafted(pages, len(sequence.tokens), computed, tokens)
        return [tuple(tokens) for tokens in told]

    def _work(
        self, asked: SequenceOf[int], shadows: SequenceOf[RequestSequence], starts: SequenceOf[int]
    ) -> tuple[list[int], list[Work]]:
        """One pass of those asked, as far as the budget goes: who lags much catches up over several."""
        budget, chosen, work = self._most, list[int](), list[Work]()
        for i in asked:
            length = min(budget, len(shadows[i].tokens) - starts[i])
            if length == 0:
                continue
            budget -= length
            chosen.append(i)
            work.append(Work(shadows[i], starts[i], length))
            for page in shadows[i].pages[starts[i] // self._size : (work[-1].stop - 1) // self._size + 1]:
                self._page_hashes[page] = b""
        return chosen, work

    def _run(self, work: list[Work]) -> list[list[Sampled]]:
        if not work:
            return []
        started_ns = self._clock_ns()
        found = self._runner.run(work)
        caused = [Caused(one.num_tokens, one.start + (one.num_tokens + 1) / 2, one.stop * self._kv_bytes) for one in work]
        self.step_cost.observe(caused, (self._clock_ns() - started_ns) / 1e9)
        return found
