"""Which sequences run in the next step, and on which pages. No clock, no torch.

Planning moves pages; tokens move in `Engine.commit`. Every running sequence that only lacks its newest token is in every
step, but that it stands still while prompts of better priority are read, for at most MAX_STILL steps in a row, so decoding
never starves; the rest of a step is prompt chunks under a token budget. Room is made by preempting the
worst: highest priority number, then least computed. A preempted sequence waits again under its old place and resumes from
whatever of its pages is still resident.
"""

import bisect
from collections.abc import Iterable, Iterator

from backends.engine.sequence import RequestSequence
from backends.engine.work import Reload, Work
from backends.kv_cache.host_cache import Fresh, HostCache
from backends.kv_cache.prefix_cache import PrefixIndex

MAX_STILL = 4
"""Rows together cost a step about as much with a chunk as without: standing still costs them time, and the worker nothing."""


def _turn(sequence: RequestSequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival


def _worst(sequences: Iterable[RequestSequence]) -> RequestSequence:
    return max(sequences, key=lambda s: (s.priority, -s.num_computed, s.arrival))


class Scheduler:
    def __init__(
        self,
        index: PrefixIndex,
        *,
        page_size: int,
        max_sequences: int,
        prefill_tokens: int,
        tier: HostCache[Reload] | None = None,
    ) -> None:
        self._index, self._tier = index, tier
        self._fresh: list[Fresh] = []
        self._page_size, self._max_sequences, self._prefill_tokens = page_size, max_sequences, prefill_tokens
        self.waiting: list[RequestSequence] = []
        self.running: list[RequestSequence] = []
        self.num_preemptions = 0
        self._num_still = 0

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens that are in and not yet computed, as if nothing of the waiting ones were resident."""
        running = sum(s.num_uncomputed for s in self.running if s.num_uncomputed > 1)
        return running + sum(len(s.tokens) for s in self.waiting)

    def add(self, sequence: RequestSequence) -> None:
        bisect.insort(self.waiting, sequence, key=_turn)

    def remove(self, sequence: RequestSequence) -> None:
        """Finished or aborted, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def plan(self) -> tuple[Work, ...]:
        """One-token work first, then chunks, best turn first."""
        if self.waiting:
            self._displace(self.waiting[0])
        self.running.sort(key=_turn)
        urgent = self._plan_urgent()
        ones = [Work(s, s.num_computed, 1) for s in self._grow_decodes(urgent)]
        chunks = list(self._plan_prefills())
        if not chunks and not ones and urgent is not None:  # what was urgent found no room
            ones = [Work(s, s.num_computed, 1) for s in self._grow_decodes()]
        ones += [work for work in chunks if work.length == 1]
        return (*ones, *(work for work in chunks if work.length > 1))

    def computed(self, sequence: RequestSequence, count: int) -> None:
        """`count` more tokens have their KV in place: pages that became full are named and shared."""
        sequence.num_computed += count
        full = sequence.num_computed // self._page_size
        done = (sequence.num_computed - count) // self._page_size
        sequence.hash_pages(full, self._page_size)
        for i in range(done, full):
            parent = sequence.page_hashes[i - 1] if i else b""
            if self._tier is not None and not self._index.match(sequence.page_hashes[i : i + 1]):
                self._fresh.append(Fresh(sequence.page_hashes[i], sequence.pages[i], sequence.chain))
            sequence.pages[i] = self._index.insert(sequence.page_hashes[i], parent, sequence.pages[i], sequence.chain)

    def can_allocate_drafts(self, work: Work, count: int) -> int:
        """How many guesses the sequence may still say and free pages hold; it takes them. Nothing is evicted for a guess."""
        sequence, size = work.sequence, self._page_size
        fits = (len(sequence.pages) + self._index.num_free) * size - work.stop
        count = max(0, min(count, fits, sequence.limit - len(sequence.tokens) - 1))
        lacking = -(-(work.stop + count) // size) - len(sequence.pages)
        if lacking > 0:
            sequence.pages += self._index.take(lacking)
        return count

    def loaded(self, reload: Reload) -> None:
        """The pages are there. Of a sequence that had to go meanwhile, nothing happens."""
        sequence = reload.sequence
        if sequence.reload is reload:
            sequence.reload = None
            self.computed(sequence, reload.count * self._page_size)

    def take_fresh(self) -> list[Fresh]:
        """Pages that have become full since the last call, by name."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _plan_urgent(self) -> int | None:
        """The priority of the first prompt to be read, where rows of a worse one stand still for it in this step."""
        prompts = [s for s in self.running if s.num_uncomputed > 1 and not s.reload][:1]
        prompts += self.waiting[: len(self.running) < self._max_sequences]
        first = min((s.priority for s in prompts), default=None)
        rows = (s.priority for s in self.running if s.num_uncomputed == 1 and not s.reload)
        if first is None or self._num_still >= MAX_STILL or max(rows, default=first) <= first:
            self._num_still = 0
            return None
        self._num_still += 1
        return first

    def _grow_decodes(self, worst: int | None = None) -> Iterator[RequestSequence]:
        """Running sequences that lack one token, each with a slot for it; those up to `worst` priority, if one is given."""
        for sequence in list(self.running):
            if sequence.num_uncomputed != 1 or sequence.reload or sequence not in self.running:
                continue
            if worst is not None and sequence.priority > worst:
                continue
            if len(sequence.pages) * self._page_size == sequence.num_computed:
                if not self._make_room(sequence):
                    continue
                sequence.pages += self._index.take(1)
        for sequence in list(self.running):
            if sequence.num_uncomputed == 1 and not sequence.reload and (worst is None or sequence.priority <= worst):
                yield sequence

    def _make_room(self, sequence: RequestSequence) -> bool:
        """One page for a running sequence. False if it was the worst itself and had to go."""
        while self._index.available == 0:
            victim = _worst(self.running)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _plan_prefills(self) -> Iterator[Work]:
        """In the order of turns, begun or waiting: a long prompt that was begun does not hold up what goes before it."""
        budget = self._prefill_tokens
        begun = [s for s in reversed(self.running) if s.num_uncomputed > 1 and not s.reload]
        room = True
        while budget and (begun or (self.waiting and room)):
            if self.waiting and room and not (begun and _turn(begun[-1]) < _turn(self.waiting[0])):
                sequence = self.waiting[0]
                room = self._admit(sequence)
                if not room:
                    continue
                self.running.append(self.waiting.pop(0))
                if sequence.reload:
                    continue
            else:
                sequence = begun.pop()
            count = min(budget, sequence.num_uncomputed)
            budget -= count
            yield Work(sequence, sequence.num_computed, count)

    def _admit(self, sequence: RequestSequence) -> bool:
        """Holds what is resident of it and takes pages for the rest. At least its last token is always computed."""
        nameable = (len(sequence.tokens) - 1) // self._page_size
        sequence.hash_pages(nameable, self._page_size)
        matched = self._index.match(sequence.page_hashes[:nameable])
        fresh = -(-len(sequence.tokens) // self._page_size) - len(matched)
        needed = fresh + self._index.cached_among(matched)
        if len(self.running) >= self._max_sequences or needed > self._index.available:
            return False
        self._index.hold(matched, sequence.chain)
        sequence.pages = [*matched, *self._index.take(fresh)]
        sequence.num_computed = len(matched) * self._page_size
        coming = self._reload(sequence, len(matched), nameable)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed + coming * self._page_size
        return True

    def _reload(self, sequence: RequestSequence, first: int, nameable: int) -> int:
        """Pages of the host tier that follow the resident ones are asked for. How many."""
        if self._tier is None:
            return 0
        count = self._tier.match(sequence.page_hashes[first:nameable])
        if count:
            there = slice(first, first + count)
            sequence.reload = reload = Reload(sequence, count)
            self._tier.load(sequence.page_hashes[there], sequence.pages[there], reload)
        return count

    def _displace(self, sequence: RequestSequence) -> None:
        """Preempts running sequences of lower priority if that lets a waiting one in."""
        lower = [s for s in self.running if s.priority > sequence.priority]
        needed = -(-len(sequence.tokens) // self._page_size)
        gained = sum(self._index.num_own(s.pages) for s in lower)
        if self._index.available + gained < needed or len(self.running) - len(lower) >= self._max_sequences:
            return
        while lower and (self._index.available < needed or len(self.running) >= self._max_sequences):
            victim = _worst(lower)
            lower.remove(victim)
            self._preempt(victim)

    def _preempt(self, sequence: RequestSequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.num_preemptions += 1
        self.add(sequence)

    def _release(self, sequence: RequestSequence) -> None:
        self._index.give_back(sequence.pages)
        sequence.pages = []
        sequence.num_computed, sequence.reload, sequence.drafted = 0, None, None

    def check(self) -> None:
        self._index.check()
        assert len(self.running) <= self._max_sequences
        assert self.waiting == sorted(self.waiting, key=_turn)
        for sequence in self.waiting:
            assert not sequence.pages and not sequence.num_computed
        for sequence in self.running:
            assert sequence not in self.waiting
            assert sequence.num_computed < len(sequence.tokens) <= sequence.limit
            assert len(sequence.pages) * self._page_size >= sequence.num_computed
