"""The OpenAPI document as one page of HTML, without scripts or external resources."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
code,.m{font-family:ui-monospace,monospace}.m{font-weight:700;text-transform:uppercase;margin-right:.5rem}
details{border-top:1px solid #ddd;padding:.5rem 0}summary{cursor:pointer}table{border-collapse:collapse;margin:.5rem 0}
td,th{border:1px solid #ddd;padding:.2rem .6rem;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}td,th,details{border-color:#444}}
"""


def openapi_page(document: Mapping[str, Any]) -> bytes:
    info, schemas = document["info"], document["components"]["schemas"]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])} API</title><style>{STYLE}</style>"
    parts = [head, f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1>"]
    parts.append('<p>The document itself: <a href="/openapi.json">/openapi.json</a></p>')
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation, schemas)
    return "\n".join(parts).encode()


def _operation(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"<details><summary><span class=m>{method}</span><code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
    body = operation.get("requestBody")
    if body:
        name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        yield from _fields(schemas[name])
    answers = operation["responses"]["200"]["content"]
    yield f"<p>Returns {escape(', '.join(answers))}.</p></details>"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    if description := schema.get("description"):
        yield f"<p>{escape(description)}</p>"
    yield "<table><tr><th>field<th>type<th>"
    for name, field in schema["properties"].items():
        yield f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(field))}<td>{'required' if name in required else ''}"
    yield "</table>"


def _kind(field: Mapping[str, Any]) -> str:
    """Return a short name of the type, with its bounds."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(option) for option in field["anyOf"]))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    kind = str(field.get("type", "any"))
    if kind == "array" and isinstance(field.get("items"), dict):
        kind = f"array of {_kind(field['items'])}"
    bounds = [f"{sign}{field[name]}" for name, sign in _BOUNDS if name in field]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


_BOUNDS = (("minimum", "≥ "), ("exclusiveMinimum", "> "), ("maximum", "≤ "), ("minItems", "from "), ("maxItems", "to "))
