"""The OpenAPI document of the gateway's endpoints, made from the structs that it decodes and encodes."""

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
    """One endpoint. `body` and `answer` are structs; without `answer` the response is an object that `summary` describes.
    `dialect` determines the format of errors."""

    method: str
    path: str
    summary: str
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
    Operation("get", "/v1/responses/{response_id}", "A stored response."),
    Operation("delete", "/v1/responses/{response_id}", "Delete a stored response."),
    Operation(
        "post", "/v1/messages", "A message, as Anthropic's Message object.", MessagesBody, streams=True, dialect="anthropic"
    ),
    Operation("post", "/v1/messages/count_tokens", "Prompt tokens of a message.", CountBody, dialect="anthropic"),
    Operation("post", "/v1/completions", "A completion of a text.", CompletionsBody, streams=True),
    Operation("get", "/v1/models", "`auto`, the tiers and the models that this key may ask for."),
    Operation("get", "/v1/models/{name}", "One model."),
    Operation("post", "/v1/headway/explain", "The decision that a chat request would get, without running it.", ChatBody),
    Operation("post", "/v1/headway/outcomes", "Label the outcome of an answer.", OutcomeBody, LabelledRequest),
    Operation("get", "/v1/headway/runs", "This tenant's live runs, and the field that identified each."),
    Operation(
        "get",
        "/v1/headway/runs/{run_id}",
        "Cost so far and cache hits of the last turns of a run of this tenant.",
    ),
    Operation("get", "/v1/headway/workers", "Every worker: properties, load and cost."),
    Operation("get", "/v1/headway/whoami", "The tenant of the key, and what it may see."),
    Operation("get", "/v1/headway/live", "The last minutes of the fleet, in samples."),
    Operation("get", "/v1/headway/policy", "The policy in force and earlier ones, for an operator."),
    Operation("get", "/v1/headway/history", "The last runs in the ledger, live ones marked."),
    Operation("get", "/v1/headway/runs/{run_id}/turns", "Every request of one run."),
    Operation("get", "/v1/headway/decisions/{name}", "One decision with the options that it rejected."),
    Operation("get", "/v1/headway/costs", "Dollars by tenant, model, run or day, and over time."),
    Operation("get", "/v1/headway/summary", "Cost of runs, attainment by SLO class, notable requests."),
    Operation("get", "/v1/headway/slo", "SLO attainment by class, percentiles over time, rejections by reason."),
    Operation("get", "/dashboard", "The dashboard.", media="text/html", open=True),
    Operation("get", "/dashboard/{name}", "A file of the dashboard.", media="text/plain", open=True),
    Operation("get", "/", "Redirect to the dashboard.", media="text/html", open=True),
    Operation("get", "/livez", "Liveness of the process.", open=True),
    Operation("get", "/readyz", "Readiness: 503 until every local worker is up.", open=True),
    Operation("get", "/metrics", "Prometheus metrics.", media="text/plain", open=True),
    Operation("get", "/openapi.json", "This document.", open=True),
    Operation("get", "/docs", "This document as HTML.", media="text/html", open=True),
)


def openapi_document(version: str) -> Data:
    kinds = [kind for operation in OPERATIONS for kind in (operation.body, operation.answer, operation.chunk) if kind]
    schemas = components([*dict.fromkeys(kinds), ErrorBody], ref_template=REFS)
    paths: dict[str, Data] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headway", "version": version, "description": "docs/api.md describes each parameter."},
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


def _operation(operation: Operation) -> Data:
    errors = "AnthropicError" if operation.dialect == "anthropic" else "ErrorBody"
    answer: Mapping[str, Any] = _ref(operation.answer.__name__) if operation.answer else {"type": "object"}
    content: Data = {operation.media: {"schema": answer if operation.media == "application/json" else {"type": "string"}}}
    if operation.streams:
        chunk = f": each event is a {operation.chunk.__name__}, the last is [DONE]" if operation.chunk else ""
        content["text/event-stream"] = {"schema": {"type": "string", "description": f"With `stream` true{chunk}."}}
    data: Data = {
        "operationId": re.sub(r"[^a-z]+", "_", f"{operation.method}{operation.path}").strip("_"),
        "summary": operation.summary,
        "responses": {
            "200": {"description": operation.summary, "content": content},
            "default": {"description": "An error.", "content": {"application/json": {"schema": _ref(errors)}}},
        },
    }
    if operation.body is not None:
        data["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body.__name__)}}}
    if "{" in operation.path:
        name = operation.path.partition("{")[2].rstrip("}")
        data["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.open:
        data["security"] = []
    return data


def _ref(name: str) -> Data:
    return {"$ref": REFS.format(name=name)}
