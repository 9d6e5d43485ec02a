"""POST handler of generating endpoints, for every dialect.

It is a plain ASGI handler, so that it alone receives and sends. It detects a disconnect in both modes, and starts a response
only when its first frame exists.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from backends.wire import TokenLogprob
from gateway.api.dialect import AnswerChoice, Dialect, ParsedRequest, ResponseStart, TokenUsage, Writer
from gateway.errors import HeadwayError, MethodNotAllowed
from gateway.http.auth import CurrentKeys
from gateway.http.body import BodyBudget, Receive, Send, read_body, until_disconnect
from gateway.http.response import FIRST_COMMENT_S, Comments, Headers, ResponseWriter, decision_headers, send_error
from gateway.parsers.output_format import OutputFormat
from gateway.parsers.output_parser import OutputParser, message_of
from gateway.pipeline.active_request import ActiveRequest, ClientGone, RequestContext
from gateway.pipeline.attempts import failure_of
from gateway.pipeline.pipeline import Pipeline
from gateway.runs.identity import mint_id, public_id
from gateway.runtime.turn_thread import TurnThread

log = logging.getLogger("headway.answer")


PARSED_AT_ONCE_BYTES = 64 * 1024
"""Bytes of a body that is parsed on the event loop. The costliest bodies take about a millisecond for each 4 KB."""


class OpenResponses:
    """Number of responses being written. `idle` is set while there is none."""

    def __init__(self) -> None:
        self._count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __enter__(self) -> None:
        self._count += 1
        self.idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self.idle.set()


class GenerateEndpoint:
    def __init__(
        self,
        pipeline: Pipeline,
        keys: CurrentKeys,
        dialect: Dialect,
        open_responses: OpenResponses,
        body_budget: BodyBudget,
        parsing: TurnThread,
        *,
        route: str,
        comment_every_s: float = FIRST_COMMENT_S,
    ) -> None:
        self._pipeline, self._keys, self._dialect, self._open_responses = pipeline, keys, dialect, open_responses
        self._route, self._parsing = route, parsing
        self._body_budget = body_budget
        self._comment_every_s = comment_every_s

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        context = RequestContext.now(headers, self._route)
        tenant, actives = "", list[ActiveRequest]()
        rates = self._pipeline.recorder.rates
        failure: HeadwayError | None = None
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("use POST")
            caller = self._keys.caller_of(headers)
            tenant, context.key_id, context.limited = caller.tenant, caller.key_id, caller.limited
            if caller.limited:
                send = _saying(send, lambda: rates.headers(caller.limited, time.monotonic()))
            context.rate_limit_pass = rates.enter(caller.limited, context.at)
            body = await read_body(headers, receive, self._body_budget)
            asked = await self._parse(body, tenant)
            actives = await self._pipeline.prepare(asked.request, context, tenant, id_prefix=self._dialect.id_prefix)
        except HeadwayError as error:
            failure = error.without_frames()  # breaks the cycle between error and frame, which would keep the request alive
        finally:
            if context.rate_limit_pass and not actives:
                rates.leave(context.rate_limit_pass, time.monotonic())
        if failure:
            self._pipeline.recorder.record_rejection(context, failure, tenant)
            await send_error(send, failure, self._dialect)
            return
        with self._open_responses:
            await self._answer(asked, actives, receive, ResponseWriter(send, self._dialect))

    async def _parse(self, body: bytes, tenant: str) -> ParsedRequest:
        """Parse a body; a large one in the thread for it, in the tenant's turn, so that it stops no other request."""
        if len(body) <= PARSED_AT_ONCE_BYTES:
            return await self._dialect.parse(body, tenant)
        return await self._parsing.run(tenant, lambda: asyncio.run(self._dialect.parse(body, tenant)), num_bytes=len(body))

    async def _answer(
        self, asked: ParsedRequest, actives: Sequence[ActiveRequest], receive: Receive, response: ResponseWriter
    ) -> None:
        watcher = asyncio.create_task(_watch(receive, actives))
        failure: HeadwayError | None = None
        try:
            await (self._stream(asked, actives, response) if asked.request.stream else self._whole(asked, actives, response))
        except HeadwayError as error:
            failure = error.without_frames()
        except asyncio.CancelledError:
            failure = ClientGone("the server cancelled the request")
            raise
        except Exception:
            # One of the two places that catch everything: the client gets an error and the sequence ends.
            log.exception("answering %s failed", actives[0].id)
            failure = HeadwayError("internal error in the gateway: see its log")
        finally:
            watcher.cancel()
            for active in actives:
                self._pipeline.release(active, failure)
        if failure and not isinstance(failure, ClientGone):
            await response.fail(failure)

    async def _whole(self, asked: ParsedRequest, actives: Sequence[ActiveRequest], response: ResponseWriter) -> None:
        await self._start(actives)
        choices = [await self._whole_choice(active) for active in actives]
        spent = _spent(actives)
        body = asked.writer(_begun(actives[0])).whole(choices, spent)
        headers = decision_headers(actives[0])
        headers.append((b"x-headway-cached-tokens", b"%d" % spent.cached_tokens))
        headers.append((b"x-headway-cost-usd", b"%.12g" % spent.headway["cost_usd"]))
        await response.whole(body, headers)

    async def _whole_choice(self, active: ActiveRequest) -> AnswerChoice:
        stream = active.stream
        assert stream
        while stream.finished is None:
            if active.gone:
                raise ClientGone("the client disconnected")
            await stream.wait_end()
        _check_end(active)
        parser = self._output_parser(active)
        pieces = stream.take()
        parser.feed("".join([piece.text for piece in pieces]))
        parser.close()
        self._remember(active, parser)
        return _choice(active, parser, [token for piece in pieces for token in piece.logprobs])

    async def _stream(self, asked: ParsedRequest, actives: Sequence[ActiveRequest], response: ResponseWriter) -> None:
        comments = Comments(response, lambda: _early_headers(actives[0]), self._comment_every_s)
        try:
            await self._start(actives)
        finally:
            await comments.stop()
        for active in actives:
            assert active.stream
            if active.stream.finished and not active.stream.pieces:
                _check_end(active)
        writer = asked.writer(_begun(actives[0]))
        pens = [_ChoiceWriter(number, active, self._output_parser(active), writer) for number, active in enumerate(actives)]
        await response.open_stream(decision_headers(actives[0]))
        out = [writer.open()]
        while True:
            for pen in pens:
                pen.write(out)
            open_pens = [pen for pen in pens if not pen.over]
            if not open_pens:
                break
            if out:
                await response.write(b"".join(out), more=True)
                out = []
            if actives[0].gone:
                raise ClientGone("the client disconnected")
            await _any(open_pens)
        for pen in pens:
            if pen.stream.finished and pen.stream.finished.reason not in ("stop", "length"):
                await response.write(b"".join(out), more=True)
                _check_end(pen.active)
        for pen in pens:
            pen.close(out)
            self._remember(pen.active, pen.parser)
        choices = [_choice(pen.active, pen.parser, pen.logprobs) for pen in pens]
        await response.write(b"".join(out) + writer.end(choices, _spent(actives)), more=False)

    async def _start(self, actives: Sequence[ActiveRequest]) -> None:
        """Start all choices; if one fails, cancel the others."""
        if len(actives) == 1:
            await self._pipeline.start(actives[0])
            return
        tasks = [asyncio.create_task(self._pipeline.start(active)) for active in actives]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _output_parser(self, active: ActiveRequest) -> OutputParser:
        def new_id() -> str:
            active.chain.calls += 1
            return mint_id(self._pipeline.preparer.secret, active.chain.name, active.chain.calls, tenant=active.tenant)

        assert active.stream
        if active.request.text is not None:
            return OutputParser(OutputFormat(), (), new_id)
        return OutputParser(self._pipeline.preparer.output_format(active.stream.worker), active.request.tools, new_id)

    def _remember(self, active: ActiveRequest, parser: OutputParser) -> None:
        if active.request.text is None:
            answer = active.answer = message_of(parser.answer())
            self._pipeline.runs.answered(active.chain, active.request.messages, answer, tenant=active.tenant)


class _ChoiceWriter:
    """Writes one choice of a stream. `over` is set once its last piece is taken."""

    def __init__(self, number: int, active: ActiveRequest, parser: OutputParser, writer: Writer) -> None:
        assert active.stream
        self.active, self.stream, self.parser = active, active.stream, parser
        self.over = False
        self.logprobs: list[TokenLogprob] = []
        self._number, self._writer = number, writer

    def write(self, out: list[bytes]) -> None:
        finished = self.stream.finished
        for piece in self.stream.take():
            events = self.parser.feed(piece.text)
            self.logprobs += piece.logprobs
            if events or piece.logprobs:
                out.append(self._writer.events(self._number, events, piece.logprobs))
        self.over = finished is not None

    def close(self, out: list[bytes]) -> None:
        events = self.parser.close()
        if events:
            out.append(self._writer.events(self._number, events, ()))


async def _any(pens: Sequence[_ChoiceWriter]) -> None:
    """Wait until one of the streams has output."""
    if len(pens) == 1:
        await pens[0].stream.wait()
        return
    waits = [asyncio.ensure_future(pen.stream.wait()) for pen in pens]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _watch(receive: Receive, actives: Sequence[ActiveRequest]) -> None:
    await until_disconnect(receive)
    for active in actives:
        active.leave()


def _check_end(active: ActiveRequest) -> None:
    """Raise the error for the client if a stream ended without an answer."""
    assert active.stream and active.stream.finished
    if active.gone:
        raise ClientGone("the client disconnected")
    if active.stream.finished.reason not in ("stop", "length"):
        raise failure_of(active.stream.finished)


def _choice(active: ActiveRequest, parser: OutputParser, logprobs: Sequence[TokenLogprob]) -> AnswerChoice:
    assert active.finished
    asked = active.request.sampling.top_logprobs is not None
    return AnswerChoice(parser.answer(), active.finished.reason, active.finished.stop_text, logprobs if asked else None)


def _begun(active: ActiveRequest) -> ResponseStart:
    assert active.pending.decision
    chosen = active.pending.decision.chosen
    created = active.context.wall_ns // 1_000_000_000
    return ResponseStart(active.id, created, chosen.model, active.request, chosen.prompt_tokens, chosen.cached_tokens)


def _saying(send: Send, headers: Callable[[], Headers]) -> Send:
    """Return a `send` that adds headers to the response, whether answer or error."""

    async def sends(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += headers()
        await send(message)

    return sends


def _early_headers(active: ActiveRequest) -> Headers:
    """Return the headers of a stream that still waits: those that a changed decision does not affect."""
    run = public_id(active.identity.run).encode("latin-1", "replace")
    return [(b"x-headway-decision-id", active.pending.decision_id.encode()), (b"x-headway-run-id", run)]


def _spent(actives: Sequence[ActiveRequest]) -> TokenUsage:
    """Return the usage of all choices. The shared prompt counts once; dollars and device time are sums."""
    first = actives[0]
    finished, decision = first.finished, first.pending.decision
    assert finished and decision
    chosen = decision.chosen
    return TokenUsage(
        prompt_tokens=finished.num_prompt_tokens,
        cached_tokens=finished.num_cached_tokens,
        output_tokens=sum(active.finished.num_output_tokens for active in actives if active.finished),
        headway={
            "decision_id": decision.id,
            "run_id": public_id(first.identity.run),
            "model": chosen.model,
            "tier": chosen.tier,
            "worker": chosen.worker,
            "reason": decision.reason,
            "queue_s": first.queue_s,
            "ttft_s": first.ttft_s,
            "total_s": time.monotonic() - first.context.at,
            "device_s": sum(active.device_s for active in actives),
            "cached_tokens": finished.num_cached_tokens,
            "cost_usd": sum(active.cost_usd for active in actives),
            "saved_usd": sum(active.saved_usd for active in actives),
            "counterfactual_usd": sum(active.counterfactual_usd for active in actives),
            "attempts": first.num_attempts,
        },
    )
