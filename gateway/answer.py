"""POST /v1/chat/completions as a plain ASGI handler, so that it alone receives and sends: it sees a client leave in both modes,
and the first frame is there before the response begins."""

import asyncio
import logging
import time
from typing import Any

from gateway.api.chat_answer import Usage
from gateway.api.chat_render import DONE, ChunkRenderer, finish_reason, render_completion, usage
from gateway.api.tool_calls import Event, TextDelta
from gateway.asgi import Receive, Send, read_body, until_disconnect
from gateway.auth import Keys
from gateway.call import Arrival, Call, ClientGone
from gateway.errors import HeadwayError
from gateway.pipeline import Pipeline, failure_of
from gateway.reply import FIRST_COMMENT_S, Comments, Reply, decision_headers, send_error
from gateway.runs.identity import mint_call_id, public_id
from gateway.transcript import Transcript, message_of

log = logging.getLogger("headway.chat")


class MethodNotAllowed(HeadwayError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class ChatEndpoint:
    def __init__(self, pipeline: Pipeline, keys: Keys, *, comment_every_s: float = FIRST_COMMENT_S) -> None:
        self._pipeline = pipeline
        self._keys = keys
        self._max_body = pipeline.policy.limits.max_body_bytes
        self._comment_every_s = comment_every_s
        self._num_open = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def admit_with(self, keys: Keys) -> None:
        """Who may ask from now on."""
        self._keys = keys

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        arrival = Arrival.now(headers)
        tenant = ""
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("ask with POST")
            tenant = self._keys.tenant_of(headers)
            body = await read_body(headers, receive, max_bytes=self._max_body)
            call = await self._pipeline.open(body, arrival, tenant)
        except HeadwayError as error:
            self._pipeline.books.turned_away(arrival, error, tenant)
            await send_error(send, error)
            return
        self._num_open += 1
        self.idle.clear()
        try:
            await self._answer(call, receive, Reply(send))
        finally:
            self._num_open -= 1
            if not self._num_open:
                self.idle.set()

    async def _answer(self, call: Call, receive: Receive, reply: Reply) -> None:
        watcher = asyncio.create_task(self._watch(receive, call))
        failure: HeadwayError | None = None
        try:
            await (self._stream(call, reply) if call.request.stream else self._whole(call, reply))
        except HeadwayError as error:
            failure = error
        except asyncio.CancelledError:
            failure = ClientGone("the server dropped the request")
            raise
        except Exception:
            # One of the two places that catch everything: the caller is told, and the sequence ends.
            log.exception("answering %s failed", call.id)
            failure = HeadwayError("something went wrong in the gateway: its log says what")
        finally:
            watcher.cancel()
            self._pipeline.release(call, failure)
        if failure and not isinstance(failure, ClientGone):
            await reply.fail(failure)

    async def _watch(self, receive: Receive, call: Call) -> None:
        await until_disconnect(receive)
        call.leave()

    async def _whole(self, call: Call, reply: Reply) -> None:
        await self._pipeline.start(call)
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
        with_logprobs = call.request.sampling.top_logprobs is not None
        answer = transcript.answer()
        self._remember(call, transcript)
        body = render_completion(
            id=call.id,
            created=call.arrival.wall_ns // 1_000_000_000,
            model=_model(call),
            answer=answer,
            finish=finish_reason(stream.finished.reason, transcript.num_calls),
            usage=_usage(call),
            logprobs=[token for piece in pieces for token in piece.logprobs] if with_logprobs else None,
        )
        headers = decision_headers(call)
        headers.append((b"x-headway-cached-tokens", b"%d" % stream.finished.num_cached_tokens))
        headers.append((b"x-headway-cost-usd", b"%.12g" % call.cost_usd))
        await reply.whole(body, headers)

    async def _stream(self, call: Call, reply: Reply) -> None:
        comments = Comments(reply, lambda: _early_headers(call), self._comment_every_s)
        try:
            await self._pipeline.start(call)
        finally:
            await comments.stop()
        stream = call.stream
        assert stream
        if stream.finished and not stream.pieces:
            _check_end(call)
        renderer = ChunkRenderer(
            id=call.id,
            created=call.arrival.wall_ns // 1_000_000_000,
            model=_model(call),
            include_usage=call.request.include_usage,
        )
        transcript = self._transcript(call)
        await reply.open_stream(decision_headers(call))
        out = [renderer.open()]
        while True:
            finished = stream.finished
            for piece in stream.take():
                events = transcript.feed(piece.text)
                if piece.logprobs:
                    text = "".join(event.text for event in events if isinstance(event, TextDelta))
                    out.append(renderer.text_with_logprobs(text, piece.logprobs))
                    events = [event for event in events if not isinstance(event, TextDelta)]
                out += map(renderer.event, events)
            if finished:
                break
            if out:
                await reply.write(b"".join(out), more=True)
                out = []
            if call.gone:
                raise ClientGone("the client left")
            await stream.wait()
        if finished.reason not in ("stop", "length"):
            await reply.write(b"".join(out), more=True)
            _check_end(call)
        await reply.write(b"".join(out) + self._end(call, renderer, transcript, transcript.close()), more=False)

    def _end(self, call: Call, renderer: ChunkRenderer, transcript: Transcript, events: list[Event]) -> bytes:
        assert call.finished
        self._remember(call, transcript)
        out = [renderer.event(event) for event in events]
        out.append(renderer.finish(finish_reason(call.finished.reason, transcript.num_calls)))
        if call.request.include_usage:
            out.append(renderer.usage(_usage(call)))
        out.append(DONE)
        return b"".join(out)

    def _transcript(self, call: Call) -> Transcript:
        def new_id() -> str:
            call.chain.calls += 1
            return mint_call_id(self._pipeline.secret, call.chain.name, call.chain.calls, tenant=call.tenant)

        return Transcript(has_tools=bool(call.request.tools), new_id=new_id)

    def _remember(self, call: Call, transcript: Transcript) -> None:
        answer = message_of(transcript.answer())
        self._pipeline.runs.answered(call.chain, call.request.messages, answer, tenant=call.tenant)


def _check_end(call: Call) -> None:
    """Raises what the caller should see when a stream ended in no answer."""
    assert call.stream and call.stream.finished
    if call.gone:
        raise ClientGone("the client left")
    if call.stream.finished.reason not in ("stop", "length"):
        raise failure_of(call.stream.finished)


def _model(call: Call) -> str:
    assert call.ticket.decision
    return call.ticket.decision.chosen.model


def _early_headers(call: Call) -> list[tuple[bytes, bytes]]:
    """Of a stream that still waits: the choice may change, so only what holds is said."""
    run = public_id(call.identity.run).encode("latin-1", "replace")
    return [(b"x-headway-decision-id", call.ticket.decision_id.encode()), (b"x-headway-run-id", run)]


def _usage(call: Call) -> Usage:
    finished, decision = call.finished, call.ticket.decision
    assert finished and decision
    chosen = decision.chosen
    return usage(
        prompt_tokens=finished.num_prompt_tokens,
        cached_tokens=finished.num_cached_tokens,
        completion_tokens=finished.num_output_tokens,
        headway={
            "decision_id": decision.id,
            "run_id": public_id(call.identity.run),
            "model": chosen.model,
            "tier": chosen.tier,
            "worker": chosen.worker,
            "reason": decision.reason,
            "queue_s": call.queue_s,
            "ttft_s": call.ttft_s,
            "total_s": time.monotonic() - call.arrival.at,
            "device_s": call.device_s,
            "cached_tokens": finished.num_cached_tokens,
            "cost_usd": call.cost_usd,
            "saved_usd": call.saved_usd,
            "counterfactual_usd": call.counterfactual_usd,
            "attempts": call.num_attempts,
        },
    )
