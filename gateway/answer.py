"""A request of any dialect as a plain ASGI handler, so that it alone receives and sends: it sees a client leave in both modes,
and the first frame is there before the response begins."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from backends.wire import TokenLogprob
from gateway.api.dialect import Asked, Begun, Choice, Dialect, Spent, Writer
from gateway.asgi import Reading, Receive, Send, read_body, until_disconnect
from gateway.auth import Keys
from gateway.call import Arrival, Call, ClientGone
from gateway.errors import HeadwayError, MethodNotAllowed
from gateway.pipeline import Pipeline, failure_of
from gateway.reply import FIRST_COMMENT_S, Comments, Headers, Reply, decision_headers, send_error
from gateway.runs.identity import mint_id, public_id
from gateway.text.family import Family
from gateway.transcript import Transcript, message_of

log = logging.getLogger("headway.answer")


class OpenAnswers:
    """How many answers are being written; `idle` is set while none is."""

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


class AnswerEndpoint:
    def __init__(
        self,
        pipeline: Pipeline,
        keys: Keys,
        dialect: Dialect,
        answers: OpenAnswers,
        reading: Reading,
        *,
        route: str,
        comment_every_s: float = FIRST_COMMENT_S,
    ) -> None:
        self._pipeline, self._keys, self._dialect, self._answers = pipeline, keys, dialect, answers
        self._route = route
        self._reading = reading
        self._comment_every_s = comment_every_s

    def admit_with(self, keys: Keys) -> None:
        """Who may ask from now on."""
        self._keys = keys

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        arrival = Arrival.now(headers, self._route)
        tenant, calls = "", list[Call]()
        rates = self._pipeline.books.rates
        failure: HeadwayError | None = None
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("ask with POST")
            caller = self._keys.caller_of(headers)
            tenant, arrival.key_id, arrival.limited = caller.tenant, caller.key_id, caller.limited
            if caller.limited:
                send = _saying(send, lambda: rates.headers(caller.limited, time.monotonic()))
            arrival.passed = rates.enter(caller.limited, arrival.at)
            body = await read_body(headers, receive, self._reading)
            asked = await self._dialect.parse(body, tenant)
            calls = await self._pipeline.open(asked.request, arrival, tenant, id_prefix=self._dialect.id_prefix)
        except HeadwayError as error:
            failure = error.without_frames()  # or it and this frame hold each other, and all of the request
        finally:
            if arrival.passed and not calls:
                rates.leave(arrival.passed, time.monotonic())
        if failure:
            self._pipeline.books.turned_away(arrival, failure, tenant)
            await send_error(send, failure, self._dialect)
            return
        with self._answers:
            await self._answer(asked, calls, receive, Reply(send, self._dialect))

    async def _answer(self, asked: Asked, calls: Sequence[Call], receive: Receive, reply: Reply) -> None:
        watcher = asyncio.create_task(_watch(receive, calls))
        failure: HeadwayError | None = None
        try:
            await (self._stream(asked, calls, reply) if asked.request.stream else self._whole(asked, calls, reply))
        except HeadwayError as error:
            failure = error.without_frames()
        except asyncio.CancelledError:
            failure = ClientGone("the server dropped the request")
            raise
        except Exception:
            # One of the two places that catch everything: the caller is told, and the sequence ends.
            log.exception("answering %s failed", calls[0].id)
            failure = HeadwayError("something went wrong in the gateway: its log says what")
        finally:
            watcher.cancel()
            for call in calls:
                self._pipeline.release(call, failure)
        if failure and not isinstance(failure, ClientGone):
            await reply.fail(failure)

    async def _whole(self, asked: Asked, calls: Sequence[Call], reply: Reply) -> None:
        await self._start(calls)
        choices = [await self._whole_choice(call) for call in calls]
        spent = _spent(calls)
        body = asked.writer(_begun(calls[0])).whole(choices, spent)
        headers = decision_headers(calls[0])
        headers.append((b"x-headway-cached-tokens", b"%d" % spent.cached_tokens))
        headers.append((b"x-headway-cost-usd", b"%.12g" % spent.headway["cost_usd"]))
        await reply.whole(body, headers)

    async def _whole_choice(self, call: Call) -> Choice:
        stream = call.stream
        assert stream
        while stream.finished is None:
            if call.gone:
                raise ClientGone("the client left")
            await stream.wait_end()
        _check_end(call)
        transcript = self._transcript(call)
        pieces = stream.take()
        transcript.feed("".join([piece.text for piece in pieces]))
        transcript.close()
        self._remember(call, transcript)
        return _choice(call, transcript, [token for piece in pieces for token in piece.logprobs])

    async def _stream(self, asked: Asked, calls: Sequence[Call], reply: Reply) -> None:
        comments = Comments(reply, lambda: _early_headers(calls[0]), self._comment_every_s)
        try:
            await self._start(calls)
        finally:
            await comments.stop()
        for call in calls:
            assert call.stream
            if call.stream.finished and not call.stream.pieces:
                _check_end(call)
        writer = asked.writer(_begun(calls[0]))
        pens = [_Pen(number, call, self._transcript(call), writer) for number, call in enumerate(calls)]
        await reply.open_stream(decision_headers(calls[0]))
        out = [writer.open()]
        while True:
            for pen in pens:
                pen.write(out)
            open_pens = [pen for pen in pens if not pen.over]
            if not open_pens:
                break
            if out:
                await reply.write(b"".join(out), more=True)
                out = []
            if calls[0].gone:
                raise ClientGone("the client left")
            await _any(open_pens)
        for pen in pens:
            if pen.stream.finished and pen.stream.finished.reason not in ("stop", "length"):
                await reply.write(b"".join(out), more=True)
                _check_end(pen.call)
        for pen in pens:
            pen.close(out)
            self._remember(pen.call, pen.transcript)
        choices = [_choice(pen.call, pen.transcript, pen.logprobs) for pen in pens]
        await reply.write(b"".join(out) + writer.end(choices, _spent(calls)), more=False)

    async def _start(self, calls: Sequence[Call]) -> None:
        """All of them; when one cannot, none."""
        if len(calls) == 1:
            await self._pipeline.start(calls[0])
            return
        tasks = [asyncio.create_task(self._pipeline.start(call)) for call in calls]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _transcript(self, call: Call) -> Transcript:
        def new_id() -> str:
            call.chain.calls += 1
            return mint_id(self._pipeline.secret, call.chain.name, call.chain.calls, tenant=call.tenant)

        assert call.stream
        if call.request.text is not None:
            return Transcript(Family(), (), new_id)
        return Transcript(self._pipeline.family(call.stream.worker), call.request.tools, new_id)

    def _remember(self, call: Call, transcript: Transcript) -> None:
        if call.request.text is None:
            answer = call.answer = message_of(transcript.answer())
            self._pipeline.runs.answered(call.chain, call.request.messages, answer, tenant=call.tenant)


class _Pen:
    """One choice of a stream: what came of it and was not written yet. `over` when its last piece is taken."""

    def __init__(self, number: int, call: Call, transcript: Transcript, writer: Writer) -> None:
        assert call.stream
        self.call, self.stream, self.transcript = call, call.stream, transcript
        self.over = False
        self.logprobs: list[TokenLogprob] = []
        self._number, self._writer = number, writer

    def write(self, out: list[bytes]) -> None:
        finished = self.stream.finished
        for piece in self.stream.take():
            events = self.transcript.feed(piece.text)
            self.logprobs += piece.logprobs
            if events or piece.logprobs:
                out.append(self._writer.events(self._number, events, piece.logprobs))
        self.over = finished is not None

    def close(self, out: list[bytes]) -> None:
        events = self.transcript.close()
        if events:
            out.append(self._writer.events(self._number, events, ()))


async def _any(pens: Sequence[_Pen]) -> None:
    """Until one of them has something."""
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


async def _watch(receive: Receive, calls: Sequence[Call]) -> None:
    await until_disconnect(receive)
    for call in calls:
        call.leave()


def _check_end(call: Call) -> None:
    """Raises what the caller should see when a stream ended in no answer."""
    assert call.stream and call.stream.finished
    if call.gone:
        raise ClientGone("the client left")
    if call.stream.finished.reason not in ("stop", "length"):
        raise failure_of(call.stream.finished)


def _choice(call: Call, transcript: Transcript, logprobs: Sequence[TokenLogprob]) -> Choice:
    assert call.finished
    asked = call.request.sampling.top_logprobs is not None
    return Choice(transcript.answer(), call.finished.reason, call.finished.stop_text, logprobs if asked else None)


def _begun(call: Call) -> Begun:
    assert call.ticket.decision
    chosen = call.ticket.decision.chosen
    created = call.arrival.wall_ns // 1_000_000_000
    return Begun(call.id, created, chosen.model, call.request, chosen.prompt_tokens, chosen.cached_tokens)


def _saying(send: Send, headers: Callable[[], Headers]) -> Send:
    """Adds headers to the response, whichever it becomes."""

    async def sends(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += headers()
        await send(message)

    return sends


def _early_headers(call: Call) -> Headers:
    """Of a stream that still waits: the choice may change, so only what holds is said."""
    run = public_id(call.identity.run).encode("latin-1", "replace")
    return [(b"x-headway-decision-id", call.ticket.decision_id.encode()), (b"x-headway-run-id", run)]


def _spent(calls: Sequence[Call]) -> Spent:
    """The prompt counts once, as its choices share it; dollars and device time are of all."""
    first = calls[0]
    finished, decision = first.finished, first.ticket.decision
    assert finished and decision
    chosen = decision.chosen
    return Spent(
        prompt_tokens=finished.num_prompt_tokens,
        cached_tokens=finished.num_cached_tokens,
        output_tokens=sum(call.finished.num_output_tokens for call in calls if call.finished),
        headway={
            "decision_id": decision.id,
            "run_id": public_id(first.identity.run),
            "model": chosen.model,
            "tier": chosen.tier,
            "worker": chosen.worker,
            "reason": decision.reason,
            "queue_s": first.queue_s,
            "ttft_s": first.ttft_s,
            "total_s": time.monotonic() - first.arrival.at,
            "device_s": sum(call.device_s for call in calls),
            "cached_tokens": finished.num_cached_tokens,
            "cost_usd": sum(call.cost_usd for call in calls),
            "saved_usd": sum(call.saved_usd for call in calls),
            "counterfactual_usd": sum(call.counterfactual_usd for call in calls),
            "attempts": first.num_attempts,
        },
    )
