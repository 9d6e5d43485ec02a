"""Hands a decided request to its worker or upstream, and tells predictions, footprints and placement."""

from collections.abc import Callable
from functools import partial

from msgspec import structs

from gateway.fleet.fleet import Fleet
from gateway.fleet.token_stream import TokenStream
from gateway.pipeline.pending import PendingRequest
from gateway.pipeline.placement_input import beginning
from gateway.pipeline.worker_seats import WorkerSeats
from gateway.routing.decision import Decision
from gateway.scheduling.placement import Placement


class Submitter:
    def __init__(self, fleet: Fleet, seats: WorkerSeats, placement: Placement, *, clock: Callable[[], float]) -> None:
        self._fleet, self._seats, self._placement, self._clock = fleet, seats, placement, clock

    def submit(self, pending: PendingRequest, decision: Decision) -> TokenStream:
        worker = decision.chosen.worker
        pending.decision = decision
        pending.kv_index_sequence = self._fleet.kv_index.sequence(worker)
        if worker in self._fleet.upstreams:
            return self._to_upstream(pending, decision)
        stream = self._to_worker(pending, decision)
        self._observe(pending, decision, stream)
        return stream

    def _to_upstream(self, pending: PendingRequest, decision: Decision) -> TokenStream:
        assert pending.request
        worker = decision.chosen.worker
        stream = self._fleet.upstreams[worker].submit(
            pending.request,
            pending.sampling,
            prompt_tokens=decision.chosen.prompt_tokens,
            chain=pending.chain,
            traceparent=pending.traceparent,
        )
        stream.on_first = partial(self._fleet.predictors[worker].first_token, stream.request)
        return stream

    def _to_worker(self, pending: PendingRequest, decision: Decision) -> TokenStream:
        chosen, sampling = decision.chosen, pending.sampling
        worker = chosen.worker
        if grammar := pending.grammars.get(worker):
            sampling = structs.replace(sampling, grammar=grammar)
        if chosen.holdback_tokens:
            sampling = structs.replace(sampling, confidence=True)
        stream = self._fleet.clients[worker].submit(
            pending.prompts[worker].data,
            sampling,
            shared_tokens=pending.prompts[worker].shared_tokens,
            uncached_tokens=chosen.prompt_tokens - chosen.cached_tokens,
            priority=self._seats.priority(pending.tenant, pending.band, worker),
            salt=pending.tenant,
            chain=pending.chain,
            traceparent=pending.traceparent,
        )
        if chosen.holdback_tokens:
            stream.hold_back(chosen.holdback_tokens, chosen.escalate_below)
        return stream

    def _observe(self, pending: PendingRequest, decision: Decision, stream: TokenStream) -> None:
        chosen, now = decision.chosen, self._clock()
        worker = chosen.worker
        predictor, hello = self._fleet.predictors[worker], self._fleet.clients[worker].hello
        stream.on_first = partial(predictor.first_token, stream.request)
        wait_s = predictor.wait_s(max_sequences=hello.max_sequences if hello else 1, queued_tokens=0, now=now)
        predictor.submitted(stream.request, chosen.prompt_tokens - chosen.cached_tokens, wait_s=wait_s)
        output_tokens = min(pending.sampling.max_tokens, int(pending.routing_request.expected_output_tokens))
        self._fleet.footprints.record(worker, pending.chain, chosen.prompt_tokens + output_tokens)
        if prefix := beginning(pending.prompts[worker].page_hashes):
            self._placement.record_placement(worker, now, prefix=prefix)
