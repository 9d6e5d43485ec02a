"""Parses the body of POST /v1/chat/completions into a Request.

What would change the answer and is not supported is refused by name; what changes nothing is accepted and listed.
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
"""Fields that would change the answer, and the values with which they do not."""

ADVISORY = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")

DAY_S = 86_400.0
"""What `prompt_cache_retention: 24h` asks for."""

_decoder = BodyDecoder(ChatBody)


def parse_chat(body: bytes, *, max_tokens_default: int) -> Request:
    """`max_tokens_default` holds where the client gives none. Without a temperature the answer is greedy (temperature 0).

    Raises BadRequest or UnsupportedParameter, with the path of the field at fault in `param`, and nothing else.
    """
    given = _decoder.decode(body)
    advisory = _accepted(given)
    messages = read_messages(given.messages)
    if any(message.name is not None for message in given.messages):
        advisory += ("messages.name",)
    max_tokens = _max_tokens(given)
    offered = read_tools(given.tools) if given.tools else ()
    tools, calls = rule_for(offered, given.tool_choice, parallel=given.parallel_tool_calls is not False)
    return Request(
        model=given.model,
        messages=messages,
        tools=tools,
        sampling=_sampling(given, max_tokens or max_tokens_default),
        max_tokens_given=max_tokens is not None,
        stream=bool(given.stream),
        include_usage=_includes_usage(given),
        advisory=advisory,
        hints=run_hints(given),
        keep_s=DAY_S if given.prompt_cache_retention == "24h" else 0.0,
        num_choices=given.n or 1,
        calls=calls,
        service_tier=given.service_tier,
        reasoning_effort=given.reasoning_effort,
    )


def _accepted(given: ChatBody) -> tuple[str, ...]:
    """Names of the given fields that change nothing. Raises UnsupportedParameter for one that would."""
    names = [name for name in ADVISORY if getattr(given, name) is not None]
    for name, harmless in NO_OPS.items():
        value = getattr(given, name)
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


def _max_tokens(given: ChatBody) -> int | None:
    old, new = given.max_tokens, given.max_completion_tokens
    if old is not None and new is not None and old != new:
        message = f"max_tokens is {old:,} and max_completion_tokens {new:,}: send only max_completion_tokens"
        raise BadRequest(message, param="max_tokens")
    return old if new is None else new


def _sampling(given: ChatBody, max_tokens: int) -> Sampling:
    if given.top_logprobs is not None and not given.logprobs:
        raise BadRequest("top_logprobs needs logprobs: send logprobs true with it", param="top_logprobs")
    stop = given.stop or ()
    return Sampling(
        max_tokens=max_tokens,
        temperature=given.temperature or 0.0,
        top_k=max(given.top_k or 0, 0),
        top_p=1.0 if given.top_p is None else given.top_p,
        seed=given.seed,
        stop=(stop,) if isinstance(stop, str) else stop,
        top_logprobs=given.top_logprobs or 0 if given.logprobs else None,
        ignore_eos=bool(given.ignore_eos),
        presence_penalty=given.presence_penalty or 0.0,
        frequency_penalty=given.frequency_penalty or 0.0,
        logit_bias=read_logit_bias(given.logit_bias, model=given.model),
        grammar=_grammar(given),
    )


def read_logit_bias(given: Mapping[str, float] | None, *, model: str) -> tuple[tuple[int, float], ...]:
    """Ids are a model's own: among several models nobody could know what they mean."""
    if not given:
        return ()
    if model == AUTO:
        message = "logit_bias needs a model: token ids differ between models, so name one instead of auto"
        raise BadRequest(message, param="logit_bias")
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise BadRequest(f"logit_bias: {token[:32]!r} is no token id", param="logit_bias")
    return tuple((int(token), bias) for token, bias in given.items())


def _grammar(given: ChatBody) -> Grammar | None:
    format = given.response_format
    if format is None:
        return None
    schema = format.json_schema.schema if format.json_schema else None
    grammar = read_format(format.type, schema, format.pattern, param="response_format", fit=bool(format.fit))
    if grammar is not None and given.ignore_eos:
        raise BadRequest("ignore_eos beside response_format: an answer of a form ends with it", param="ignore_eos")
    return grammar


def _includes_usage(given: ChatBody) -> bool:
    if given.stream_options is None:
        return False
    if not given.stream:
        raise BadRequest("stream_options needs stream: send stream true with it", param="stream_options")
    return bool(given.stream_options.include_usage)
