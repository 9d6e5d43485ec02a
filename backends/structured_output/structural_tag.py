"""A grammar as an xgrammar structural tag: what must be written, around free text, as nested plain data."""

import json
from typing import Any

from backends.structured_output.schema_bounds import bounded
from backends.wire import CallForm, Grammar

THINK_END = "</think>"
ANY_OBJECT = {"type": "object"}

Format = dict[str, Any]


def structural_tag(grammar: Grammar) -> Format:
    content = _content(grammar)
    if grammar.thinks != "no":
        begin = "<think>" if grammar.thinks == "opens" else ""
        thoughts = _tag(begin, {"type": "any_text"}, THINK_END)
        first = {"type": "optional", "content": thoughts} if begin else thoughts
        content = {"type": "sequence", "elements": [first, {"type": "regex", "pattern": r"\n{0,2}"}, content]}
    return {"type": "structural_tag", "format": content}


def _content(grammar: Grammar) -> Format:
    match grammar.kind:
        case "json":
            return _json(ANY_OBJECT)
        case "schema":
            return _json(json.loads(grammar.text))
        case "regex":
            return {"type": "regex", "pattern": grammar.text}
        case "calls":
            return _calls(grammar)


def _calls(grammar: Grammar) -> Format:
    tags = [_call(form) for form in grammar.calls]
    if not (grammar.required or grammar.text):
        return {
            "type": "triggered_tags",
            "triggers": [grammar.trigger],
            "tags": tags,
            "stop_after_first": not grammar.parallel,
        }
    calls = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": grammar.separator,
        "at_least_one": True,
        "stop_after_first": not grammar.parallel,
    }
    if grammar.prefix or grammar.suffix:
        calls = _tag(grammar.prefix, calls, grammar.suffix)
    if grammar.text:
        return {"type": "or", "elements": [_json(json.loads(grammar.text)), calls]}
    return calls


def _call(form: CallForm) -> Format:
    content = _json(json.loads(form.schema))
    if form.style != "json":
        content["style"] = form.style
    return _tag(form.begin, content, form.end)


def _json(schema: Any) -> Format:
    return {"type": "json_schema", "json_schema": bounded(schema), "max_whitespace_cnt": 1}


def _tag(begin: str, content: Format, end: str) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}
