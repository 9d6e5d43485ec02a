"""Choice of the sequences and pages of the next step. No clock, no torch.

Planning allocates pages; `Engine._commit` appends tokens. Every running sequence that lacks only its newest token decodes in
every step. Decodes of a worse priority pause while prompts of a better one prefill, for at most MAX_STILL steps in a row, so
decoding never starves. The rest of a step is prefills under a token budget. Pages are freed by preemption of the worst
sequence: highest priority number, then fewest computed tokens. A preempted sequence waits at its old position and resumes from
those of its pages that are still resident.
"""

import bisect
from collections.abc import Iterable, Iterator

from backends.engine.sequence import RequestSequence
from backends.engine.work import Reload, Work
from backends.kv_cache.host_cache import Fresh, HostCache
from backends.kv_cache.prefix_cache import PrefixIndex

MAX_STILL = 4
"""Consecutive steps in which decodes may pause. Decodes together cost a step about as much with a prefill as without, so a
pause costs these sequences time and the worker nothing.
"""


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
        """Return the prompt tokens submitted and not yet computed, as if no page of a waiting sequence were resident."""
        running = sum(s.num_uncomputed for s in self.running if s.num_uncomputed > 1)
        return running + sum(len(s.tokens) for s in self.waiting)

    def add(self, sequence: RequestSequence) -> None:
        bisect.insort(self.waiting, sequence, key=_turn)

    def remove(self, sequence: RequestSequence) -> None:
        """Remove a finished or aborted sequence, running or waiting."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def plan(self) -> tuple[Work, ...]:
        """Return the work of a step: decodes, then prefills, each in order of priority and arrival."""
        if self.waiting:
            self._displace(self.waiting[0])
        self.running.sort(key=_turn)
        urgent = self._plan_urgent()
        decodes = [Work(s, s.num_computed, 1) for s in self._grow_decodes(urgent)]
        prefills = list(self._plan_prefills())
        if not prefills and not decodes and urgent is not None:  # the urgent prompt found no capacity
            decodes = [Work(s, s.num_computed, 1) for s in self._grow_decodes()]
        decodes += [work for work in prefills if work.length == 1]
        return (*decodes, *(work for work in prefills if work.length > 1))

    def computed(self, sequence: RequestSequence, count: int) -> None:
        """Record that `count` more tokens have their KV in place. Pages that became full are hashed and shared."""
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
        """Allocate free pages for up to `count` draft tokens, within the sequence's limit. Return how many fit. Nothing is
        evicted.
        """
        sequence, size = work.sequence, self._page_size
        fits = (len(sequence.pages) + self._index.num_free) * size - work.stop
        count = max(0, min(count, fits, sequence.limit - len(sequence.tokens) - 1))
        lacking = -(-(work.stop + count) // size) - len(sequence.pages)
        if lacking > 0:
            sequence.pages += self._index.take(lacking)
        return count

    def loaded(self, reload: Reload) -> None:
        """Record that the pages of a reload are in place. A sequence released in the meantime is ignored."""
        sequence = reload.sequence
        if sequence.reload is reload:
            sequence.reload = None
            self.computed(sequence, reload.count * self._page_size)

    def take_fresh(self) -> list[Fresh]:
        """Return the pages that became full since the last call, with their hashes."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _plan_urgent(self) -> int | None:
        """Return the priority of the first prefill if decodes of a worse one pause for it in this step, else None."""
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
        """Yield running sequences that lack one token, each with a page for it; only up to priority `worst`, if set."""
        for sequence in list(self.running):
            if sequence.num_uncomputed != 1 or sequence.reload or sequence not in self.running:
                continue
            if worst is not None and sequence.priority > worst:
                continue
            if len(sequence.pages) * self._page_size == sequence.num_computed:
                if not self._free_page(sequence):
                    continue
                sequence.pages += self._index.take(1)
        for sequence in list(self.running):
            if sequence.num_uncomputed == 1 and not sequence.reload and (worst is None or sequence.priority <= worst):
                yield sequence

    def _free_page(self, sequence: RequestSequence) -> bool:
        """Free one page for a running sequence. Return False if that sequence was the worst itself and is preempted."""
        while self._index.available == 0:
            victim = _worst(self.running)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _plan_prefills(self) -> Iterator[Work]:
        """Yield prefills by priority and arrival, started or waiting. A long started prefill does not delay a prompt of better
        priority.
        """
        budget = self._prefill_tokens
        begun = [s for s in reversed(self.running) if s.num_uncomputed > 1 and not s.reload]
        has_capacity = True
        while budget and (begun or (self.waiting and has_capacity)):
            if self.waiting and has_capacity and not (begun and _turn(begun[-1]) < _turn(self.waiting[0])):
                sequence = self.waiting[0]
                has_capacity = self._admit(sequence)
                if not has_capacity:
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
        """Reference the resident pages of a sequence and take fresh ones for the rest. Its last token is always computed."""
        num_hashable = (len(sequence.tokens) - 1) // self._page_size
        sequence.hash_pages(num_hashable, self._page_size)
        matched = self._index.match(sequence.page_hashes[:num_hashable])
        fresh = -(-len(sequence.tokens) // self._page_size) - len(matched)
        needed = fresh + self._index.cached_among(matched)
        if len(self.running) >= self._max_sequences or needed > self._index.available:
            return False
        self._index.hold(matched, sequence.chain)
        sequence.pages = [*matched, *self._index.take(fresh)]
        sequence.num_computed = len(matched) * self._page_size
        num_loading = self._reload(sequence, len(matched), num_hashable)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed + num_loading * self._page_size
        return True

    def _reload(self, sequence: RequestSequence, first: int, num_hashable: int) -> int:
        """Start to load the host cache's pages that follow the resident ones. Return their number."""
        if self._tier is None:
            return 0
        count = self._tier.match(sequence.page_hashes[first:num_hashable])
        if count:
            there = slice(first, first + count)
            sequence.reload = reload = Reload(sequence, count)
            self._tier.load(sequence.page_hashes[there], sequence.pages[there], reload)
        return count

    def _displace(self, sequence: RequestSequence) -> None:
        """Preempt running sequences of lower priority if that admits a waiting one."""
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
