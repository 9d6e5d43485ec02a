"""The dialect of OpenAI's Responses. Output comes as items, each added, filled and done. A finished response can be continued
by its id."""

from collections.abc import Sequence
from typing import Any

import msgspec

from backends.wire import TokenLogprob
from gateway.api.chat_answer import Logprobs
from gateway.api.chat_render import content_logprobs, render_error
from gateway.api.dialect import AnswerChoice, ParsedRequest, ResponseStart, TokenUsage
from gateway.api.response_items import CallItem, Data, Item, ReasoningOut, TextItem
from gateway.api.response_store import ResponseStore
from gateway.api.responses import Parsed, parse_response, read_body
from gateway.errors import HeadwayError, NotFound, PreviousResponseNotFound
from gateway.parsers.events import Answer, CallArguments, CallStart, Event, ReasoningDelta, TextDelta
from gateway.parsers.output_parser import message_of
from gateway.request import Message

DEFAULT_MAX_TOKENS = 2048
_encode = msgspec.json.Encoder().encode


class ResponsesDialect:
    id_prefix = "resp_"

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def parse(self, body: bytes, tenant: str) -> ParsedRequest:
        decoded = read_body(body)
        previous: tuple[Message, ...] = ()
        if decoded.previous_response_id is not None:
            try:
                previous = (await self._store.get(tenant, decoded.previous_response_id)).conversation()
            except NotFound as error:
                message = f"previous_response_id: {error.message}"
                raise PreviousResponseNotFound(message, param="previous_response_id") from error
        parsed = parse_response(decoded, previous, max_tokens_default=DEFAULT_MAX_TOKENS)

        def keep(id: str, answer: Answer, body: bytes) -> None:
            if decoded.store is not False:
                self._store.put(tenant, id, (*parsed.conversation, message_of(answer)), body)

        return ParsedRequest(parsed.request, lambda begun: ResponsesWriter(begun, parsed, keep))

    def error(self, error: HeadwayError) -> bytes:
        return render_error(error)

    def error_event(self, error: HeadwayError) -> bytes:
        data = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "sequence_number": 0}
        return b"event: error\ndata: %b\n\n" % _encode(data)


class ResponsesWriter:
    """Renders one response. `keep` is called once, at the end, with the response sent to the client."""

    def __init__(self, begun: ResponseStart, parsed: Parsed, keep: Any) -> None:
        self._begun, self._parsed, self._keep = begun, parsed, keep
        self._stem = begun.id.partition("_")[2]
        self._sequence = -1
        self._items: list[Item] = []
        self._logprobs: list[Data] = []

    def open(self) -> bytes:
        body = self._body("in_progress", None)
        return self._event("response.created", response=body) + self._event("response.in_progress", response=body)

    def events(self, choice: int, events: Sequence[Event], logprobs: Sequence[TokenLogprob]) -> bytes:
        scores = _scores(logprobs)
        self._logprobs += scores
        out: list[bytes] = []
        for event in events:
            match event:
                case TextDelta(text):
                    item = self._current(TextItem, out)
                    self._gain(item, text, out, logprobs=scores)
                    scores = []
                case ReasoningDelta(text):
                    self._gain(self._current(ReasoningOut, out), text, out)
                case CallStart(_, id, name):
                    self._add(CallItem(f"fc_{self._stem}_{len(self._items)}", id, name), out)
                case CallArguments(_, text):
                    self._gain(self._items[-1], text, out)
        return b"".join(out)

    def end(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        out: list[bytes] = []
        status = _status(choices[0])
        self._done(out, status)
        if not self._items:
            self._add(TextItem(f"msg_{self._stem}_0"), out)
            self._done(out, status)
        body = self._body(status, spent, choices[0])
        self._keep(self._begun.id, choices[0].answer, _encode(body))
        out.append(self._event(f"response.{status}", response=body))
        return b"".join(out)

    def whole(self, choices: Sequence[AnswerChoice], spent: TokenUsage) -> bytes:
        choice = choices[0]
        answer, stem = choice.answer, self._stem
        if answer.reasoning:
            self._items.append(ReasoningOut(f"rs_{stem}_{len(self._items)}", answer.reasoning))
        if answer.content or not answer.tool_calls:
            self._items.append(TextItem(f"msg_{stem}_{len(self._items)}", answer.content))
        for call in answer.tool_calls:
            self._items.append(CallItem(f"fc_{stem}_{len(self._items)}", call.id, call.name, call.arguments))
        self._logprobs = _scores(choice.logprobs or ())
        status = _status(choice)
        for item in self._items:
            item.status = status
        body = _encode(self._body(status, spent, choice))
        self._keep(self._begun.id, answer, body)
        return body

    def _current(self, kind: type[TextItem] | type[ReasoningOut], out: list[bytes]) -> Item:
        if not (self._items and isinstance(self._items[-1], kind)):
            self._add(kind(f"{kind.prefix}_{self._stem}_{len(self._items)}"), out)
        return self._items[-1]

    def _add(self, item: Item, out: list[bytes]) -> None:
        self._done(out, "completed")
        self._items.append(item)
        index = len(self._items) - 1
        out.append(self._event("response.output_item.added", output_index=index, item=item.data()))
        for name, fields in item.begins():
            out.append(self._event(name, item_id=item.id, output_index=index, **fields))

    def _gain(self, item: Item, text: str, out: list[bytes], **more: Any) -> None:
        item.text += text
        fields = item.gains(text) | (more if isinstance(item, TextItem) else {})
        out.append(self._event(item.delta, item_id=item.id, output_index=len(self._items) - 1, **fields))

    def _done(self, out: list[bytes], status: str) -> None:
        if not self._items or self._items[-1].status != "in_progress":
            return
        item, index = self._items[-1], len(self._items) - 1
        item.status = status
        for name, fields in item.ends():
            out.append(self._event(name, item_id=item.id, output_index=index, **fields))
        out.append(self._event("response.output_item.done", output_index=index, item=item.data()))

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._sequence += 1
        data = {"type": name, "sequence_number": self._sequence, **fields}
        return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))

    def _body(self, status: str, spent: TokenUsage | None, choice: AnswerChoice | None = None) -> Data:
        begun, decoded = self._begun, self._parsed.decoded
        output = [item.data() for item in self._items]
        if choice is not None and choice.logprobs is not None:
            texts = [item for item in output if item["type"] == "message"]
            if texts:
                texts[0]["content"][0]["logprobs"] = self._logprobs
        return {
            "id": begun.id,
            "object": "response",
            "created_at": begun.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": decoded.instructions,
            "max_output_tokens": decoded.max_output_tokens,
            "model": begun.model,
            "output": output,
            "parallel_tool_calls": decoded.parallel_tool_calls is not False,
            "previous_response_id": decoded.previous_response_id,
            "reasoning": decoded.reasoning or {"effort": None, "summary": None},
            "service_tier": begun.request.served_tier or "default",
            "store": decoded.store is not False,
            "temperature": decoded.temperature or 0.0,
            "text": decoded.text or {"format": {"type": "text"}},
            "tool_choice": decoded.tool_choice or "auto",
            "tools": [{**msgspec.to_builtins(tool), "strict": bool(tool.strict)} for tool in decoded.tools or ()],
            "top_p": 1.0 if decoded.top_p is None else decoded.top_p,
            "truncation": "disabled",
            "usage": None if spent is None else _usage(spent),
            "user": decoded.user,
            "metadata": decoded.metadata or {},
        }


def _status(choice: AnswerChoice) -> str:
    return "incomplete" if choice.reason == "length" else "completed"


def _scores(logprobs: Sequence[TokenLogprob]) -> list[Data]:
    scores: Logprobs = content_logprobs(logprobs)
    converted: list[Data] = msgspec.to_builtins(scores.content)
    return converted


def _usage(spent: TokenUsage) -> Data:
    return {
        "input_tokens": spent.prompt_tokens,
        "input_tokens_details": {"cached_tokens": spent.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": spent.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent.prompt_tokens + spent.output_tokens,
        "headway": spent.headway,
    }
