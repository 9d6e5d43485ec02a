"""Parses the body of POST /v1/chat/completions into a Request.

An unsupported field that would change the answer is refused by name. One that changes nothing is accepted and listed.
"""

from collections.abc import Mapping
from typing import Any

from backends.wire import Grammar, Sampling
from gateway.api.chat_body import ChatBody
from gateway.api.chat_messages import read_messages, read_tools
from gateway.api.decode import BodyDecoder
from gateway.api.format import read_format
from gateway.api.run_fields import run_hints
from gateway.api.tool_choice import rule_for
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.policy.validate import AUTO
from gateway.request import Request

NO_OPS: Mapping[str, tuple[Any, ...]] = {
    "store": (False,),
    "modalities": (("text",),),
    "functions": (),
    "function_call": (),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Values with which each of these fields leaves the answer unchanged. Any other value would change it and is refused."""

ADVISORY = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")

DAY_S = 86_400.0
"""Seconds that `prompt_cache_retention: 24h` asks for."""

_decoder = BodyDecoder(ChatBody)


def parse_chat(body: bytes, *, max_tokens_default: int) -> Request:
    """Parse a request body. `max_tokens_default` applies if the client sends no limit. Without a temperature decoding is greedy
    (temperature 0).

    Raises BadRequest or UnsupportedParameter, with the path of the field at fault in `param`, and nothing else.
    """
    decoded = _decoder.decode(body)
    advisory = _accepted(decoded)
    messages = read_messages(decoded.messages)
    if any(message.name is not None for message in decoded.messages):
        advisory += ("messages.name",)
    max_tokens = _max_tokens(decoded)
    offered = read_tools(decoded.tools) if decoded.tools else ()
    tools, calls = rule_for(offered, decoded.tool_choice, parallel=decoded.parallel_tool_calls is not False)
    return Request(
        model=decoded.model,
        messages=messages,
        tools=tools,
        sampling=_sampling(decoded, max_tokens or max_tokens_default),
        max_tokens_given=max_tokens is not None,
        stream=bool(decoded.stream),
        include_usage=_includes_usage(decoded),
        advisory=advisory,
        hints=run_hints(decoded),
        keep_s=DAY_S if decoded.prompt_cache_retention == "24h" else 0.0,
        num_choices=decoded.n or 1,
        calls=calls,
        service_tier=decoded.service_tier,
        reasoning_effort=decoded.reasoning_effort,
    )


def _accepted(decoded: ChatBody) -> tuple[str, ...]:
    """Return the names of the accepted fields that change nothing. Raises UnsupportedParameter for a field that would change
    the answer."""
    names = [name for name in ADVISORY if getattr(decoded, name) is not None]
    for name, harmless in NO_OPS.items():
        value = getattr(decoded, name)
        if value is None:
            continue
        if value not in harmless:
            raise UnsupportedParameter(_refusal(name, harmless), param=name)
        names.append(name)
    return tuple(names)


def _refusal(name: str, harmless: tuple[Any, ...]) -> str:
    if name in ("functions", "function_call"):
        return f"{name} is not supported: use tools and tool_choice"
    if not harmless:
        return f"{name} is not supported: leave it out"
    allowed = " or ".join(str(list(value) if isinstance(value, tuple) else value) for value in harmless)
    return f"{name} is supported only as {allowed}: send that or leave it out"


def _max_tokens(decoded: ChatBody) -> int | None:
    old, new = decoded.max_tokens, decoded.max_completion_tokens
    if old is not None and new is not None and old != new:
        message = f"max_tokens is {old:,} and max_completion_tokens {new:,}: send only max_completion_tokens"
        raise BadRequest(message, param="max_tokens")
    return old if new is None else new


def _sampling(decoded: ChatBody, max_tokens: int) -> Sampling:
    if decoded.top_logprobs is not None and not decoded.logprobs:
        raise BadRequest("top_logprobs needs logprobs: send logprobs true with it", param="top_logprobs")
    stop = decoded.stop or ()
    return Sampling(
        max_tokens=max_tokens,
        temperature=decoded.temperature or 0.0,
        top_k=max(decoded.top_k or 0, 0),
        top_p=1.0 if decoded.top_p is None else decoded.top_p,
        seed=decoded.seed,
        stop=(stop,) if isinstance(stop, str) else stop,
        top_logprobs=decoded.top_logprobs or 0 if decoded.logprobs else None,
        ignore_eos=bool(decoded.ignore_eos),
        presence_penalty=decoded.presence_penalty or 0.0,
        frequency_penalty=decoded.frequency_penalty or 0.0,
        logit_bias=read_logit_bias(decoded.logit_bias, model=decoded.model),
        grammar=_grammar(decoded),
    )


def read_logit_bias(biases: Mapping[str, float] | None, *, model: str) -> tuple[tuple[int, float], ...]:
    """Return (token id, bias) pairs. A named model is required, because token ids differ between models."""
    if not biases:
        return ()
    if model == AUTO:
        message = "logit_bias needs a model: token ids differ between models, so name one instead of auto"
        raise BadRequest(message, param="logit_bias")
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise BadRequest(f"logit_bias: {token[:32]!r} is not a token id: use the decimal id as the key", param="logit_bias")
    return tuple((int(token), bias) for token, bias in biases.items())


def _grammar(decoded: ChatBody) -> Grammar | None:
    format = decoded.response_format
    if format is None:
        return None
    schema = format.json_schema.schema if format.json_schema else None
    grammar = read_format(format.type, schema, format.pattern, param="response_format", fit=bool(format.fit))
    if grammar is not None and decoded.ignore_eos:
        raise BadRequest(
            "ignore_eos beside response_format is not supported: leave one out",
            param="ignore_eos",
        )
    return grammar


def _includes_usage(decoded: ChatBody) -> bool:
    if decoded.stream_options is None:
        return False
    if not decoded.stream:
        raise BadRequest("stream_options needs stream: send stream true with it", param="stream_options")
    return bool(decoded.stream_options.include_usage)
