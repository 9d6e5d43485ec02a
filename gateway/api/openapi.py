"""The OpenAPI document of all that the gateway answers, made from the structs that it decodes and encodes."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.api.chat_answer import Chunk, Completion, ErrorBody
from gateway.api.chat_body import ChatBody
from gateway.api.completions import CompletionsBody
from gateway.api.messages_body import CountBody, MessagesBody
from gateway.api.responses_body import ResponsesBody
from gateway.ledger.outcomes import LabelledRequest, OutcomeBody
from gateway.policy.struct_schema import components
from gateway.routing.decision import REJECT_REASONS

REFS = "#/components/schemas/{name}"
Data = dict[str, Any]


class Operation(NamedTuple):
    """`body` and `answer` are structs; without an answer it is an object that `says` describes. `dialect` shapes its errors."""

    method: str
    path: str
    says: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None
    streams: bool = False
    dialect: str = "openai"
    media: str = "application/json"
    open: bool = False


OPERATIONS = (
    Operation("post", "/v1/chat/completions", "A chat completion.", ChatBody, Completion, Chunk, streams=True),
    Operation("post", "/v1/responses", "A response, as OpenAI's Response object.", ResponsesBody, streams=True),
    Operation("get", "/v1/responses/{response_id}", "A response that was stored."),
    Operation("delete", "/v1/responses/{response_id}", "Forgets a stored response."),
    Operation(
        "post", "/v1/messages", "A message, as Anthropic's Message object.", MessagesBody, streams=True, dialect="anthropic"
    ),
    Operation("post", "/v1/messages/count_tokens", "Prompt tokens of a message.", CountBody, dialect="anthropic"),
    Operation("post", "/v1/completions", "A completion of a text.", CompletionsBody, streams=True),
    Operation("get", "/v1/models", "`auto`, the tiers and the models that this key may ask for."),
    Operation("get", "/v1/models/{name}", "One of them."),
    Operation("post", "/v1/headway/explain", "The decision that a chat request would get, without running it.", ChatBody),
    Operation("post", "/v1/headway/outcomes", "Says how good an answer was.", OutcomeBody, LabelledRequest),
    Operation("get", "/v1/headway/runs", "This tenant's live runs: what was understood, and from which field."),
    Operation(
        "get",
        "/v1/headway/runs/{run_id}",
        "What a run of this tenant has cost so far, and what its last turns found in the cache.",
    ),
    Operation("get", "/v1/headway/workers", "Every worker: what it is, what it does, what it costs."),
    Operation("get", "/v1/headway/whoami", "Who the key is, and what it may see."),
    Operation("get", "/v1/headway/live", "The last minutes of the fleet, in samples."),
    Operation("get", "/v1/headway/policy", "The policy in force and those before it, for an operator."),
    Operation("get", "/v1/headway/history", "The last runs in the ledger, live ones marked."),
    Operation("get", "/v1/headway/runs/{run_id}/turns", "Every request of one run."),
    Operation("get", "/v1/headway/decisions/{name}", "One decision with the options that it rejected."),
    Operation("get", "/v1/headway/costs", "Dollars by tenant, model, run or day, and over time."),
    Operation("get", "/v1/headway/summary", "What runs cost, attainment by SLO class, notable requests."),
    Operation("get", "/v1/headway/slo", "SLO attainment by class, percentiles over time, rejections by reason."),
    Operation("get", "/dashboard", "The dashboard.", media="text/html", open=True),
    Operation("get", "/dashboard/{name}", "What the dashboard's page is made of.", media="text/plain", open=True),
    Operation("get", "/", "To the dashboard.", media="text/html", open=True),
    Operation("get", "/livez", "Whether the process lives.", open=True),
    Operation("get", "/readyz", "Whether every local worker is up; 503 until then.", open=True),
    Operation("get", "/metrics", "Prometheus metrics.", media="text/plain", open=True),
    Operation("get", "/openapi.json", "This document.", open=True),
    Operation("get", "/docs", "This document, to read.", media="text/html", open=True),
)


def openapi_document(version: str) -> Data:
    kinds = [kind for one in OPERATIONS for kind in (one.body, one.answer, one.chunk) if kind is not None]
    schemas = components([*dict.fromkeys(kinds), ErrorBody], ref_template=REFS)
    paths: dict[str, Data] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headway", "version": version, "description": "What each parameter does is in docs/api.md."},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "AnthropicError": _ANTHROPIC_ERROR, "RejectReason": _REJECT_REASON},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"apiKey": []}],
    }


_ANTHROPIC_ERROR: Data = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}

_REJECT_REASON: Data = {
    "description": "Why an option of a decision was not chosen.",
    "oneOf": [{"const": reason, "description": meaning} for reason, meaning in REJECT_REASONS.items()],
}


def _operation(one: Operation) -> Data:
    errors = "AnthropicError" if one.dialect == "anthropic" else "ErrorBody"
    answer: Mapping[str, Any] = _ref(one.answer.__name__) if one.answer else {"type": "object"}
    content: Data = {one.media: {"schema": answer if one.media == "application/json" else {"type": "string"}}}
    if one.streams:
        chunk = f": each event is a {one.chunk.__name__}, the last is [DONE]" if one.chunk else ""
        content["text/event-stream"] = {"schema": {"type": "string", "description": f"With `stream` true{chunk}."}}
    data: Data = {
        "operationId": re.sub(r"[^a-z]+", "_", f"{one.method}{one.path}").strip("_"),
        "summary": one.says,
        "responses": {
            "200": {"description": one.says, "content": content},
            "default": {"description": "What went wrong.", "content": {"application/json": {"schema": _ref(errors)}}},
        },
    }
    if one.body is not None:
        data["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(one.body.__name__)}}}
    if "{" in one.path:
        name = one.path.partition("{")[2].rstrip("}")
        data["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if one.open:
        data["security"] = []
    return data


def _ref(name: str) -> Data:
    return {"$ref": REFS.format(name=name)}
