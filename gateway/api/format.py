"""The form that an answer is asked to have, as a grammar: a JSON object, a JSON Schema, or a regular expression."""

from typing import Any

import msgspec

from backends.wire import Grammar
from gateway.api.json_schema import check_schema
from gateway.errors import BadRequest, UnsupportedParameter


def read_format(
    kind: str, schema: dict[str, Any] | None, pattern: str | None, *, param: str, fit: bool = False
) -> Grammar | None:
    """None for plain text. `param` is the field that says so, under which `json_schema` has its schema. With `fit` an answer
    that is led to its end by its limit is taken as one that ended.

    Raises BadRequest with the place of what is missing or not supported.
    """
    if fit and kind not in ("json_object", "json_schema"):
        raise UnsupportedParameter(f"{param}.fit is for json_object and json_schema: leave it out", param=f"{param}.fit")
    match kind:
        case "text":
            return None
        case "json_object":
            return Grammar(kind="json", param=param, fit=fit)
        case "json_schema":
            if schema is None:
                path = f"{param}.json_schema.schema"
                raise BadRequest(f"{path} is missing: it is required", param=path)
            check_schema(schema, param=param)
            return Grammar(kind="schema", param=param, text=msgspec.json.encode(schema).decode(), fit=fit)
        case "regex":
            if pattern is None:
                raise BadRequest(f"{param}.pattern is missing: it is required", param=f"{param}.pattern")
            return Grammar(kind="regex", param=param, text=pattern)
        case _:
            message = f"{param}.type: '{kind[:64]}' is not supported: use text, json_object or json_schema"
            raise UnsupportedParameter(message, param=f"{param}.type")
