import random

import msgspec

from backends.wire import Sampling
from gateway.policy.schema import Text
from gateway.request import CallRule, Message, Request, Tool
from gateway.text.normalize import normalized

BILLING = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={};"


def request(*messages: tuple[str, str], tools: tuple[str, ...] = (), call: str = "") -> Request:
    offered = tuple(Tool(name=name, parameters={"type": "object", "properties": {"b": {}, "a": {}}}) for name in tools)
    return Request(
        model="auto",
        messages=tuple(Message(role=role, content=content) for role, content in messages),  # type: ignore[arg-type]
        tools=offered,
        calls=CallRule(param="tool_choice", tools=tuple(t for t in offered if t.name == call), required=True) if call else None,
        sampling=Sampling(max_tokens=1),
    )


def test_matching_line_is_dropped_and_all_others_are_unchanged() -> None:
    given = request(("system", f"{BILLING.format('ab1')}\nYou are \n\n  careful. \n"), ("user", BILLING.format("x")))
    found = normalized(given, Text())
    assert [message.content for message in found.messages] == ["You are \n\n  careful. \n", BILLING.format("x")]
    assert found.normalized == ("message 0 (system): 1 line dropped",)


def test_system_message_of_dropped_lines_is_removed_unless_it_is_the_only_message() -> None:
    alone = request(("system", BILLING.format(1)))
    assert [one.content for one in normalized(alone, Text()).messages] == [""]
    other = request(("system", BILLING.format(1)), ("user", "hello"))
    assert [one.role for one in normalized(other, Text()).messages] == ["user"]


def test_request_without_matches_is_returned_as_it_is() -> None:
    for given in (
        request(("system", "the x-anthropic-billing-header: of others"), ("user", "hi"), tools=("a", "b")),
        request(("user", "hi"), tools=("b", "a"), call="b"),
        msgspec.structs.replace(request(("system", BILLING)), text=BILLING),
    ):
        text = Text(sort_tools=False) if given.calls else Text()
        assert normalized(given, text) is given
    told = request(("system", BILLING.format(1)), ("user", "hi"), tools=("b", "a"))
    assert normalized(told, Text(drop_lines=(), sort_tools=False)) is told


def test_an_operator_may_name_lines_of_other_clients() -> None:
    text = Text(drop_lines=("Current date and time: *", "*tokens left"))
    given = request(("system", "Help.\nCurrent date and time: 9:15:03\n120 tokens left\nBe brief."), ("user", "hi"))
    found = normalized(given, text)
    assert found.messages[0].content == "Help.\nBe brief."
    assert found.normalized == ("message 0 (system): 2 lines dropped",)


def test_tools_are_sorted_and_callable_tools_stay_the_same() -> None:
    names, rng = ["search", "edit", "bash", "Read"], random.Random(3)
    seen = set()
    for _ in range(20):
        rng.shuffle(names)
        found = normalized(request(("user", "hi"), tools=tuple(names), call="edit"), Text())
        seen.add(tuple(tool.name for tool in found.tools))
        assert found.calls and [tool.name for tool in found.calls.tools] == ["edit"] and found.calls.required
        assert list(found.tools[0].parameters or {}) == ["type", "properties"]
        assert all(tool.parameters == {"type": "object", "properties": {"b": {}, "a": {}}} for tool in found.tools)
    assert seen == {("Read", "bash", "edit", "search")}
