"""Conversations out of hypothesis: any text, also such as looks like a template's own marks, with tool calls answered."""

import json

from hypothesis import strategies as st

from gateway.request import Message, Tool, ToolCall

MARKS = (
    "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|bos|>", "<|eot_id|>", "<tool_call>", "</tool_call>",
    "[INST]", "[/INST]", "</s>", "<s>", "<unk>", " ", "\n", "é", "é", "🙂", "<b>&amp;'\"", "{% if %}", "▁", "_", "hello world",
)  # fmt: skip

fragments = st.sampled_from(MARKS) | st.text(max_size=12)
texts = st.lists(fragments, max_size=8).map("".join)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=3)
arguments = objects.map(json.dumps) | objects.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1)) | texts
schemas = st.none() | st.fixed_dictionaries(
    {
        "type": st.just("object"),
        "properties": st.dictionaries(
            names, st.fixed_dictionaries({"type": st.just("string"), "description": texts}), max_size=3
        ),
    },
    optional={"required": st.lists(names, max_size=2)},
)
tools = st.lists(st.builds(Tool, name=names, description=texts, parameters=schemas), max_size=3).map(tuple)


@st.composite
def exchanges(draw: st.DrawFn) -> list[Message]:
    """What a user says and what comes of it."""
    messages = [Message(role="user", content=draw(texts))]
    for n in range(draw(st.integers(0, 2))):
        ids = [f"call_{n}_{k}" for k in range(draw(st.integers(1, 2)))]
        calls = tuple(ToolCall(id=i, name=draw(names), arguments=draw(arguments)) for i in ids)
        messages.append(Message(role="assistant", content=draw(st.just("") | texts), tool_calls=calls))
        messages.extend(Message(role="tool", content=draw(texts), tool_call_id=i) for i in ids)
    if draw(st.booleans()):
        messages.append(Message(role="assistant", content=draw(texts)))
    return messages


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    system = [Message(role="system", content=draw(texts))] if draw(st.booleans()) else []
    return tuple(system + [message for exchange in draw(st.lists(exchanges(), min_size=1, max_size=3)) for message in exchange])
