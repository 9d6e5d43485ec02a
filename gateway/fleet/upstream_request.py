"""Request body for an OpenAI-compatible server, and the parameters that such a server does not support."""

from typing import Any

import msgspec

from backends.wire import Grammar, Sampling
from gateway.request import CallRule, Message, Request, Tool

Data = dict[str, Any]
_CHARS_PER_TOKEN = 4.0
MAX_TOKENS_PER_CHAR = 4.0
"""A token has at least one byte, and a character of UTF-8 at most four."""
_MESSAGE_CHARS = 12
"""Characters of the markup around a message."""


def lacks(request: Request) -> str | None:
    """Return the first field that only our own workers support; None when there is none."""
    sampling = request.sampling
    if request.text is not None:
        return "prompt"
    if sampling.grammar is not None and sampling.grammar.kind not in ("json", "schema"):
        return sampling.grammar.param
    if request.reasoning_effort not in (None, "none"):
        return request.effort_param
    asked = {
        "logprobs": sampling.top_logprobs is not None,
        "logit_bias": bool(sampling.logit_bias),
        "ignore_eos": sampling.ignore_eos,
    }
    return next((name for name, is_asked in asked.items() if is_asked), None)


def body_of(request: Request, model: str, sampling: Sampling) -> bytes:
    """Return the JSON request body. It always streams: the gateway joins an unstreamed answer. `sampling` is this choice's."""
    rule = request.calls
    tools = rule.tools if rule else request.tools
    body: Data = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if tools:
        body["tools"] = [_tool(tool) for tool in tools]
        body |= _choice(rule) if rule else {}
    if sampling.grammar is not None:
        body["response_format"] = _format(sampling.grammar)
    plain = Sampling(max_tokens=1)
    for name in ("top_p", "top_k", "seed", "stop", "presence_penalty", "frequency_penalty"):
        if (value := getattr(sampling, name)) != getattr(plain, name):
            body[name] = value
    return msgspec.json.encode(body)


def _message(message: Message) -> Data:
    data: Data = {"role": message.role, "content": message.content}
    if message.tool_calls:
        data["content"] = message.content or None
        data["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        data["tool_call_id"] = message.tool_call_id
    return data


def _tool(tool: Tool) -> Data:
    function: Data = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(rule: CallRule) -> Data:
    choice: Data = {"tool_choice": "required"} if rule.required else {}
    return choice if rule.parallel else {**choice, "parallel_tool_calls": False}


def _format(grammar: Grammar) -> Data:
    if grammar.kind == "json":
        return {"type": "json_object"}
    schema = msgspec.Raw(grammar.text.encode())
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def num_chars(request: Request) -> int:
    """Return the characters that the server will tokenize."""
    chars = len(request.text or "")
    for message in request.messages:
        chars += _MESSAGE_CHARS + len(message.content)
        chars += sum(len(call.name) + len(call.arguments) + _MESSAGE_CHARS for call in message.tool_calls)
    for tool in request.tools:
        chars += len(tool.name) + len(tool.description) + len(msgspec.json.encode(tool.parameters or {}))
    return chars


class TokenCounts:
    """Token estimate for an unknown tokenizer: a decaying mean of characters a token in the reported usage. A report counts at
    most MAX_TOKENS_PER_CHAR, so that a false one cannot make later prompts too long for ever."""

    def __init__(self) -> None:
        self._chars, self._tokens = _CHARS_PER_TOKEN, 1.0

    def count(self, chars: int) -> int:
        return max(1, round(chars * self._tokens / self._chars))

    def learn(self, chars: int, tokens: int) -> None:
        if chars and tokens:
            tokens = min(tokens, round(chars * MAX_TOKENS_PER_CHAR))
            self._chars, self._tokens = 0.9 * self._chars + chars, 0.9 * self._tokens + tokens
