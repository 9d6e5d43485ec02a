"""Special tokens that are part of an answer: what marks tool calls and reasoning must reach the gateway as text."""

import json

SPECIAL_TOKENS = frozenset(
    {
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
    }
)


def with_special_tokens_as_text(tokenizer_json: str) -> str:
    """The same tokenizer, which does not leave the marks out of what it decodes."""
    data = json.loads(tokenizer_json)
    marks = [token for token in data.get("added_tokens") or () if token["special"] and token["content"] in SPECIAL_TOKENS]
    if not marks:
        return tokenizer_json
    for token in marks:
        token["special"] = False
    return json.dumps(data, ensure_ascii=False)
