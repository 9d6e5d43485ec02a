"""The document is complete: every route is in it, every reference resolves, answers have its shape; no page needs a network."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
from litestar.routes import ASGIRoute, HTTPRoute

from gateway.api.openapi import openapi_document
from gateway.app import build_app
from tests.served import ask, serve


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(refs(child) for child in value.values()))
    return set().union(*(refs(child) for child in value)) if isinstance(value, list) else set()


def test_every_reference_resolves() -> None:
    document = openapi_document("1")
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert refs(document) <= known
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_every_route_is_in_the_document(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        async with served.http.get(f"{served.url}/openapi.json") as answer:
            document = json.loads(await answer.text())
        async with served.http.get(f"{served.url}/docs") as answer:
            page = await answer.text()
        _, completion = await served.chat()
        _, error = await served.chat(ask(model="none"))
        routes = build_app(served.gateway).routes
    paths = set()
    for route in routes:
        assert isinstance(route, HTTPRoute | ASGIRoute)
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        paths.add(path)
        if isinstance(route, HTTPRoute):
            methods = {method.lower() for method in route.methods} - {"options", "head"}
            assert methods == set(document["paths"][path]), path
    # One route serves both, as run ids may contain slashes.
    assert paths | {"/v1/headway/runs/{run_id}/turns"} == set(document["paths"])
    for body, name in ((completion, "Completion"), (error, "ErrorBody")):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(body, schema)
    assert all(path in page for path in document["paths"])
    assert "<script" not in page and "http://" not in page and "https://" not in page
