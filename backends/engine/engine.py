"""The engine: `plan -> run -> commit`. Single-threaded and synchronous; clock and randomness are callables.

Every submitted request gets exactly one `Finished`. If no request runs or waits, free + cached pages are all pages.
"""

import random
from array import array
from collections.abc import Callable, Hashable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from itertools import zip_longest

from backends.engine.busy_meter import BusyMeter
from backends.engine.detokenizer import Decoder, Detokenizer
from backends.engine.request_limits import Refusal, RequestLimits, refusal
from backends.engine.scheduler import Scheduler
from backends.engine.sequence import Matcher, RequestSequence, SequenceTimes
from backends.engine.step_cost_model import Caused, StepCostModel
from backends.engine.step_interrupt import StepInterrupt
from backends.engine.stop import StopFilter
from backends.engine.work import HELD, Interruptible, Reload, Runner, Sampled, StepInterrupted, Work
from backends.kv_cache.host_cache import HostCache
from backends.kv_cache.page_pool import PagePool
from backends.kv_cache.prefix_cache import PageHasher, PrefixIndex
from backends.spec_decode.draft_model import DraftModel
from backends.spec_decode.speculator import Speculator
from backends.wire import Finished, FinishReason, Piece, Submit, TokenLogprob

MAX_HELD_LOGPROBS = 64
"""Logprobs after which a piece is sent even without text; 64 with 20 alternatives each are 30 kB of a frame."""

Clock = Callable[[], int]


@dataclass(slots=True)
class Output:
    """Pieces and ends since the last `take_output`, by owner."""

    pieces: dict[Hashable, list[Piece]] = field(default_factory=dict)
    finished: list[tuple[Hashable, Finished]] = field(default_factory=list)


class Engine:
    def __init__(
        self,
        runner: Runner,
        decoder: Decoder,
        limits: RequestLimits,
        *,
        clock_ns: Clock,
        rng: random.Random,
        tier: HostCache[Reload] | None = None,
        lookup: bool = False,
        drafter: DraftModel | None = None,
    ) -> None:
        """`lookup` and `drafter` are the sources of draft tokens; without either there is no speculation."""
        self.limits = limits
        self.pool = PagePool(limits.num_pages)
        self.index = PrefixIndex(self.pool, tier.scores if tier is not None else None)
        self.tier = tier
        self.scheduler = Scheduler(
            self.index,
            page_size=limits.page_size,
            max_sequences=limits.max_sequences,
            prefill_tokens=limits.prefill_tokens,
            tier=tier,
        )
        self.step_cost = StepCostModel()
        self.speculator = (
            Speculator(
                self.scheduler, self.step_cost, kv_bytes=limits.kv_bytes, clock_ns=clock_ns, lookup=lookup, drafter=drafter
            )
            if lookup or drafter is not None
            else None
        )
        self.busy_meter = BusyMeter(clock_ns())
        self.step_interrupt = StepInterrupt()
        self.on_finished: Callable[[Finished], None] = lambda finished: None
        self.num_prompt_tokens = self.num_cached_tokens = self.num_output_tokens = 0
        self._runner, self._decoder = runner, decoder
        self._interrupt_run = runner.interrupt if isinstance(runner, Interruptible) else None
        self.clock_ns, self._rng = clock_ns, rng
        self._live: dict[tuple[Hashable, int], RequestSequence] = {}
        self._output = Output()
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def step(self) -> None:
        work, guessing_ns = self._plan(), 0
        if self.speculator is not None:
            drafting_started_ns = self.clock_ns()
            work = self.speculator.with_drafts(work)
            guessing_ns = self.clock_ns() - drafting_started_ns
        self._wait_to_write(work)
        self.step_interrupt.begin(one.sequence.priority for one in work)
        try:
            sampled = self._runner.run(work)
        except StepInterrupted:
            self.step_interrupt.interrupted(self.busy_meter.busy_until(self.clock_ns()))
        else:
            self._commit(work, sampled, guessing_ns)

    def record_arrival(self, priority: int) -> None:
        """Interrupt the step under way if a prompt of this priority, on its way to `submit`, justifies it. Callable on any
        thread.
        """
        if self._interrupt_run is not None and self.step_interrupt.should_interrupt(priority):
            self._interrupt_run()

    def _plan(self) -> tuple[Work, ...]:
        """Return the work that can run now. Wait for the host cache if nothing else can run."""
        tier = self.tier
        if tier is None:
            work = self.scheduler.plan()
            assert work, "there is work, but the plan is empty"
            return work
        self._loaded(tier.settle())
        while not (work := self.scheduler.plan()):
            assert tier.is_copying, "there is work, but the plan is empty"
            self._loaded(tier.settle(wait=True))
        return work

    def _wait_to_write(self, work: tuple[Work, ...]) -> None:
        """Wait until the step writes to no page under a copy."""
        if self.tier is not None:
            size = self.limits.page_size
            written = (page for one in work for page in one.sequence.pages[one.start // size : (one.stop - 1) // size + 1])
            self._loaded(self.tier.before_writing(written))

    def _loaded(self, reloads: SequenceOf[Reload]) -> None:
        for reload in reloads:
            self.scheduler.loaded(reload)

    def has(self, owner: Hashable, request: int) -> bool:
        return (owner, request) in self._live

    def refusal(self, submit: Submit) -> Refusal | None:
        """Return why the request cannot be accepted now, or None."""
        return refusal(submit, self.limits, waiting=len(self.scheduler.waiting))

    def refuse(self, owner: Hashable, request: int, refused: Refusal) -> None:
        end = Finished(
            request=request,
            reason="refused",
            error=refused.message,
            error_code=refused.code,
            error_param=refused.param,
        )
        self._output.finished.append((owner, end))

    def never_ran(self, owner: Hashable, request: int) -> None:
        """Report a request that was aborted before its submission."""
        self._output.finished.append((owner, Finished(request=request, reason="abort")))

    def submit(self, owner: Hashable, submit: Submit, matcher: Matcher | None = None) -> None:
        """Start a request. `matcher` follows the grammar of the submit, if it has one."""
        refused = self.refusal(submit)
        if refused is not None:
            self.refuse(owner, submit.request, refused)
            return
        if submit.chain:
            self.index.revive(submit.chain)
        sequence = self._sequence(owner, submit)
        if matcher is not None:
            sequence.matcher = matcher
            matcher.limit(sequence.limit - sequence.num_prompt)
        self._live[owner, submit.request] = sequence
        self.scheduler.add(sequence)

    def abort(self, owner: Hashable, request: int) -> None:
        """Abort a request. For one that has ended nothing happens: its `Finished` is already reported."""
        sequence = self._live.get((owner, request))
        if sequence is not None:
            self._finish(sequence, "abort", self.clock_ns())

    def abandon(self, owner: Hashable) -> None:
        """Abort all requests of an owner that is gone, and drop its output."""
        for request in [request for who, request in self._live if who == owner]:
            self.abort(owner, request)
        self._output.pieces.pop(owner, None)
        self._output.finished = [(who, finished) for who, finished in self._output.finished if who != owner]

    def set_retention(self, chain: str, score: float) -> None:
        """Set the retention score of a chain, here and in the host cache. At 0 its pages may be evicted now."""
        self.index.set_retention(chain, score)
        if self.tier is not None:
            self.tier.set_retention(chain, score)

    def take_output(self) -> Output:
        output, self._output = self._output, Output()
        return output

    def check(self) -> None:
        self.scheduler.check()
        if self.tier is not None:
            self.tier.check()
        assert len(self._live) == len(self.scheduler.running) + len(self.scheduler.waiting)
        assert self.busy_meter.attributed_ns + self.step_interrupt.lost_ns == self.busy_meter.busy_ns
        if not self._live:
            assert self.pool.num_free + self.pool.num_cached == self.pool.num_pages

    def _sequence(self, owner: Hashable, submit: Submit) -> RequestSequence:
        sampling = submit.sampling
        tokens = array("I", submit.prompt)
        self._arrivals += 1
        return RequestSequence(
            owner=owner,
            request=submit.request,
            tokens=tokens,
            num_prompt=len(tokens),
            sampling=sampling,
            seed=self._rng.getrandbits(63) if sampling.seed is None else sampling.seed,
            limit=min(len(tokens) + sampling.max_tokens, self.limits.longest),
            priority=submit.priority,
            arrival=self._arrivals,
            chain=submit.chain,
            salt=submit.cache_salt,
            page_hasher=PageHasher(self.limits.fingerprint, submit.cache_salt, submit.shared_tokens // self.limits.page_size),
            detokenizer=Detokenizer(self._decoder),
            stops=StopFilter(sampling.stop),
            times=SequenceTimes(self.clock_ns()),
        )

    def _commit(self, work: SequenceOf[Work], sampled: SequenceOf[SequenceOf[Sampled]], guessing_ns: int) -> None:
        """Advance the sequences: the only place that does. The step's time is split before any of them finishes."""
        started_ns, ended = self.busy_meter.marked_ns, []
        prefilling = [one.sequence.num_output == 0 for one in work]
        for one, tokens in zip(work, sampled, strict=True):
            if tokens and tokens[0].token == HELD:
                self.scheduler.computed(one.sequence, one.length - 1)
                continue
            self.scheduler.computed(one.sequence, one.length)
            ended += self._gain_all(one, tokens)
        if self.tier is not None:
            self.tier.save(self.scheduler.take_fresh())
        now_ns = self.clock_ns()
        self._charge(work, prefilling, started_ns, now_ns, guessing_ns)
        for sequence, reason, stop_text in ended:
            self._finish(sequence, reason, now_ns, stop_text)

    def _charge(self, work: SequenceOf[Work], prefilling: list[bool], started_ns: int, now_ns: int, guessing_ns: int) -> None:
        """Split the step's time among its sequences. Draft time is charged too, but is not part of the cost of the model's
        step.
        """
        spent_ns = self.busy_meter.busy_until(now_ns)
        self.step_interrupt.end(spent_ns)
        caused = [caused_by(one, self.limits.kv_bytes) for one in work]
        shares = self.step_cost.split(caused, spent_ns)
        # Interrupted time is charged to the prefill that caused it, or else to the work of best priority.
        if lost_ns := self.step_interrupt.take_lost_ns():
            first = min(range(len(work)), key=lambda i: (work[i].sequence.priority, work[i].length == 1))
            shares[first] += lost_ns
        self.step_cost.observe(caused, (spent_ns - guessing_ns) / 1e9)
        if self.speculator is not None and (num_drafts := sum(len(one.drafts) for one in work)):
            plain = [caused_by(one._replace(drafts=()), self.limits.kv_bytes) for one in work]
            self.speculator.measured(plain, num_drafts, (spent_ns - guessing_ns) / 1e9)
        for one, share, prefill in zip(work, shares, prefilling, strict=True):
            charge = one.sequence.times
            charge.started_ns = charge.started_ns or max(started_ns, charge.submitted_ns)
            charge.device_ns += share
            charge.num_steps += 1
            charge.sum_batch += len(work)
            if prefill:
                charge.prefill_device_ns += share
                if one.sequence.num_output:
                    charge.first_token_ns = now_ns
        self.busy_meter.attributed_ns += sum(shares)

    def _gain_all(self, work: Work, tokens: SequenceOf[Sampled]) -> list[tuple[RequestSequence, FinishReason, str]]:
        """Append the next token, and one more after each draft that it agrees with: that draft's KV is then in place."""
        sequence, accepted, ended = work.sequence, 0, list[tuple[RequestSequence, FinishReason, str]]()
        for sampled, draft in zip_longest(tokens, work.drafts):
            ended = self._gain(sequence, sampled)
            if draft is None or sampled.token != draft:
                break
            accepted += 1
            if ended:
                break
            self.scheduler.computed(sequence, 1)
        if self.speculator is not None:
            self.speculator.learn(work, accepted)
        return ended

    def _gain(self, sequence: RequestSequence, sampled: Sampled) -> list[tuple[RequestSequence, FinishReason, str]]:
        """Append a token. Return how the sequence ends, or an empty list."""
        token = sampled.token
        sequence.tokens.append(token)
        pending = sequence.pending
        pending.num_tokens += 1
        pending.confidence = min(pending.confidence, sampled.confidence)
        if sampled.logprob is not None:
            pending.logprobs.append(self._described(sampled))
        if sequence.matcher is not None and (over := sequence.matcher.accept(token)):
            return [(sequence, over, "")]
        if token in self.limits.eos_tokens and not sequence.sampling.ignore_eos:
            return [(sequence, "stop", "")]
        passed = sequence.stops.feed(sequence.detokenizer.feed(token))
        pending.text += passed.text
        if passed.stop:
            return [(sequence, "stop", passed.stop)]
        if len(sequence.tokens) >= sequence.limit:
            return [(sequence, "length", "")]
        if pending.text or len(pending.logprobs) >= MAX_HELD_LOGPROBS:
            self._send(sequence)
        return []

    def _described(self, sampled: Sampled) -> TokenLogprob:
        top = tuple((self._text(token), logprob) for token, logprob in sampled.top)
        return TokenLogprob(self._text(sampled.token), sampled.logprob or 0.0, top)

    def _text(self, token: int) -> str:
        return self._decoder.decode([token], skip_special_tokens=False)

    def _send(self, sequence: RequestSequence) -> None:
        pending = sequence.pending
        if pending.num_tokens or pending.text:
            piece = Piece(sequence.request, pending.text, pending.num_tokens, tuple(pending.logprobs), pending.confidence)
            self._output.pieces.setdefault(sequence.owner, []).append(piece)
        pending.text, pending.num_tokens, pending.logprobs, pending.confidence = "", 0, [], 1.0

    def _flush(self, sequence: RequestSequence) -> str:
        """Send withheld text. A stop string that is complete only now still counts."""
        passed = sequence.stops.feed(sequence.detokenizer.close())
        sequence.pending.text += passed.text if passed.stop else passed.text + sequence.stops.close()
        self._send(sequence)
        return passed.stop

    def _finish(self, sequence: RequestSequence, reason: FinishReason, now_ns: int, stop_text: str = "") -> None:
        if stop_text:
            self._send(sequence)
        elif stop_text := self._flush(sequence):
            reason = "stop" if reason == "length" else reason
        del self._live[sequence.owner, sequence.request]
        self.num_prompt_tokens += sequence.num_prompt
        self.num_cached_tokens += sequence.num_cached or 0
        self.num_output_tokens += sequence.num_output
        if self.tier is not None:
            self.tier.touch(sequence.page_hashes, sequence.chain)
        if self.speculator is not None:
            self.speculator.finished(sequence)
        self.scheduler.remove(sequence)
        end = finished(sequence, reason, now_ns, stop_text)
        self._output.finished.append((sequence.owner, end))
        self.on_finished(end)


def caused_by(work: Work, kv_bytes: int) -> Caused:
    """Return the input of the cost model for one sequence's part of a step. `kv_bytes` are those of one token."""
    return Caused(work.num_tokens, work.start + (work.num_tokens + 1) / 2, work.stop * kv_bytes, work.layout[1])


def finished(sequence: RequestSequence, reason: FinishReason, now_ns: int, stop_text: str) -> Finished:
    charge = sequence.times
    started_ns = charge.started_ns or now_ns
    first_ns = charge.first_token_ns or now_ns
    return Finished(
        request=sequence.request,
        reason=reason,
        stop_text=stop_text,
        num_prompt_tokens=sequence.num_prompt,
        num_cached_tokens=sequence.num_cached or 0,
        num_output_tokens=sequence.num_output,
        queue_s=(started_ns - charge.submitted_ns) / 1e9,
        prefill_s=(first_ns - started_ns) / 1e9 if charge.started_ns else 0.0,
        decode_s=(now_ns - first_ns) / 1e9,
        device_s=charge.device_ns / 1e9,
        prefill_device_s=charge.prefill_device_ns / 1e9,
        num_steps=charge.num_steps,
        mean_batch=charge.sum_batch / charge.num_steps if charge.num_steps else 0.0,
        **_error_of(sequence, reason),
    )


def _error_of(sequence: RequestSequence, reason: FinishReason) -> dict[str, str]:
    """Return the error fields of a sequence whose grammar had no next token, or refused the one that was sampled."""
    if reason != "error":
        return {}
    param = sequence.sampling.grammar.param if sequence.sampling.grammar else ""
    message = f"{param}: the answer came to a place where this format allows no token: change the format"
    return {"error": message, "error_code": "bad_grammar", "error_param": param}
