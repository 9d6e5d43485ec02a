"""The requested output format as a grammar: a JSON object, a JSON Schema, or a regular expression."""

from typing import Any

import msgspec

from backends.wire import Grammar
from gateway.api.json_schema import check_schema
from gateway.errors import BadRequest, UnsupportedParameter


def read_format(
    kind: str, schema: dict[str, Any] | None, pattern: str | None, *, param: str, fit: bool = False
) -> Grammar | None:
    """Return the grammar, or None for plain text. `param` is the path of the format field; the schema is at `json_schema` under
    it.

    With `fit`, an answer that was closed early to respect its token limit counts as complete. Raises BadRequest with the path
    of a missing or unsupported field.
    """
    if fit and kind not in ("json_object", "json_schema"):
        raise UnsupportedParameter(f"{param}.fit is only for json_object and json_schema: leave it out", param=f"{param}.fit")
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
