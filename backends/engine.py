"""The engine: `plan -> run -> commit`. Single-threaded and synchronous; time and randomness come in as callables.

Every submitted request gets exactly one `Finished`. When nothing runs or waits, free + cached pages are all pages.
"""

import random
from array import array
from collections.abc import Callable, Hashable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from backends.detokenize import Decoder, Detokenizer
from backends.limits import Limits, refusal
from backends.meter import Meter
from backends.pages import PagePool
from backends.prefix import Namer, PrefixIndex
from backends.runner import Runner
from backends.sampler import Sampled
from backends.scheduler import Scheduler, Work
from backends.sequence import Charge, Sequence
from backends.step_cost import Caused, StepCost
from backends.stop import StopFilter
from backends.wire import Finished, FinishReason, Piece, Submit, TokenLogprob

MAX_HELD_LOGPROBS = 64
"""Silent tokens may go on for ever, and a frame is bounded: with 20 alternatives each these are 30 kB."""

Clock = Callable[[], int]


@dataclass(slots=True)
class Output:
    """What happened since the last look, for each owner."""

    pieces: dict[Hashable, list[Piece]] = field(default_factory=dict)
    finished: list[tuple[Hashable, Finished]] = field(default_factory=list)


class Engine:
    def __init__(self, runner: Runner, decoder: Decoder, limits: Limits, *, clock_ns: Clock, rng: random.Random) -> None:
        self.limits = limits
        self.pool = PagePool(limits.num_pages)
        self.index = PrefixIndex(self.pool)
        self.scheduler = Scheduler(
            self.index,
            page_size=limits.page_size,
            max_sequences=limits.max_sequences,
            prefill_tokens=limits.prefill_tokens,
        )
        self.step_cost = StepCost()
        self.meter = Meter(clock_ns())
        self.draining = False
        self.num_prompt_tokens = self.num_cached_tokens = self.num_output_tokens = 0
        self._runner, self._decoder = runner, decoder
        self.clock_ns, self._rng = clock_ns, rng
        self._live: dict[tuple[Hashable, int], Sequence] = {}
        self._output = Output()
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def step(self) -> None:
        work = self.scheduler.plan()
        assert work, "there is work that no plan reaches"
        sampled = self._runner.run(work)
        self._commit(work, sampled)

    def has(self, owner: Hashable, request: int) -> bool:
        return (owner, request) in self._live

    def submit(self, owner: Hashable, submit: Submit) -> None:
        refused = refusal(submit, self.limits, waiting=len(self.scheduler.waiting), draining=self.draining)
        if refused is not None:
            end = Finished(request=submit.request, reason="refused", error=refused.message, error_code=refused.code)
            self._output.finished.append((owner, end))
            return
        if submit.chain:
            self.index.revive(submit.chain)
        sequence = self._sequence(owner, submit)
        self._live[owner, submit.request] = sequence
        self.scheduler.add(sequence)

    def abort(self, owner: Hashable, request: int) -> None:
        """Of a request that is gone: nothing happens, its `Finished` is on its way."""
        sequence = self._live.get((owner, request))
        if sequence is not None:
            self._finish(sequence, "abort", self.clock_ns())

    def abandon(self, owner: Hashable) -> None:
        """The owner is gone, and with it whoever would read."""
        for request in [request for who, request in self._live if who == owner]:
            self.abort(owner, request)
        self._output.pieces.pop(owner, None)
        self._output.finished = [(who, finished) for who, finished in self._output.finished if who != owner]

    def reprioritize(self, owner: Hashable, request: int, priority: int) -> None:
        sequence = self._live.get((owner, request))
        if sequence is not None:
            self.scheduler.reprioritize(sequence, priority)

    def take_output(self) -> Output:
        output, self._output = self._output, Output()
        return output

    def check(self) -> None:
        self.scheduler.check()
        assert len(self._live) == len(self.scheduler.running) + len(self.scheduler.waiting)
        assert self.meter.attributed_ns == self.meter.busy_ns
        if not self._live:
            assert self.pool.num_free + self.pool.num_cached == self.pool.num_pages

    def _sequence(self, owner: Hashable, submit: Submit) -> Sequence:
        sampling = submit.sampling
        tokens = array("I", submit.prompt)
        self._arrivals += 1
        return Sequence(
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
            namer=Namer(self.limits.fingerprint, submit.cache_salt),
            detokenizer=Detokenizer(self._decoder),
            stops=StopFilter(sampling.stop),
            charge=Charge(self.clock_ns()),
        )

    def _commit(self, work: SequenceOf[Work], sampled: SequenceOf[Sampled | None]) -> None:
        """The only place where sequences advance. Ends the step: its time is known and shared out before anyone finishes."""
        started_ns, ended = self.meter.marked_ns, []
        prefilling = [one.sequence.num_output == 0 for one in work]
        for one, token in zip(work, sampled, strict=True):
            self.scheduler.computed(one.sequence, one.length)
            if token is not None:
                ended += self._gain(one.sequence, token)
        now_ns = self.clock_ns()
        self._charge(work, prefilling, started_ns, now_ns)
        for sequence, reason, stop_text in ended:
            self._finish(sequence, reason, now_ns, stop_text)

    def _charge(self, work: SequenceOf[Work], prefilling: list[bool], started_ns: int, now_ns: int) -> None:
        spent_ns = self.meter.busy_until(now_ns)
        caused = [Caused(count, start + (count + 1) / 2, (start + count) * self.limits.kv_bytes) for _, start, count in work]
        shares = self.step_cost.split(caused, spent_ns)
        self.step_cost.observe(caused, spent_ns / 1e9)
        for one, share, prefill in zip(work, shares, prefilling, strict=True):
            charge = one.sequence.charge
            charge.started_ns = charge.started_ns or max(started_ns, charge.submitted_ns)
            charge.device_ns += share
            charge.num_steps += 1
            charge.sum_batch += len(work)
            if prefill:
                charge.prefill_device_ns += share
                if one.sequence.num_output:
                    charge.first_token_ns = now_ns
        self.meter.attributed_ns += sum(shares)

    def _gain(self, sequence: Sequence, sampled: Sampled) -> list[tuple[Sequence, FinishReason, str]]:
        """Appends a token. Returns how the sequence ends, if it does."""
        token = sampled.token
        sequence.tokens.append(token)
        pending = sequence.pending
        pending.num_tokens += 1
        pending.confidence = min(pending.confidence, sampled.confidence)
        if sampled.logprob is not None:
            pending.logprobs.append(self._described(sampled))
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

    def _send(self, sequence: Sequence) -> None:
        pending = sequence.pending
        if pending.num_tokens or pending.text:
            piece = Piece(sequence.request, pending.text, pending.num_tokens, tuple(pending.logprobs), pending.confidence)
            self._output.pieces.setdefault(sequence.owner, []).append(piece)
        pending.text, pending.num_tokens, pending.logprobs, pending.confidence = "", 0, [], 1.0

    def _flush(self, sequence: Sequence) -> str:
        """Sends what was held back. A stop string that only now is complete still counts."""
        passed = sequence.stops.feed(sequence.detokenizer.close())
        sequence.pending.text += passed.text if passed.stop else passed.text + sequence.stops.close()
        self._send(sequence)
        return passed.stop

    def _finish(self, sequence: Sequence, reason: FinishReason, now_ns: int, stop_text: str = "") -> None:
        if stop_text:
            self._send(sequence)
        elif stop_text := self._flush(sequence):
            reason = "stop" if reason == "length" else reason
        del self._live[sequence.owner, sequence.request]
        self.num_prompt_tokens += sequence.num_prompt
        self.num_cached_tokens += sequence.num_cached or 0
        self.num_output_tokens += sequence.num_output
        self.scheduler.remove(sequence)
        self._output.finished.append((sequence.owner, finished(sequence, reason, now_ns, stop_text)))


def finished(sequence: Sequence, reason: FinishReason, now_ns: int, stop_text: str) -> Finished:
    charge = sequence.charge
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
    )
