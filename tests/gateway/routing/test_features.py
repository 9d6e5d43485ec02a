from hypothesis import given
from hypothesis import strategies as st

from gateway.request import Message, Tool
from gateway.routing.conversation_features import structure_names
from gateway.routing.features import NUM_SCALARS, features

WEATHER = Tool(name="get_weather", parameters={"properties": {"city": {"type": "string"}}})
messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), content=st.text(max_size=200)),
    max_size=8,
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


@given(messages, st.lists(st.builds(Tool, name=st.text(max_size=5)), max_size=3), st.integers(8, 18))
def test_any_conversation_has_features_within_bounds(conversation: list[Message], tools: list[Tool], bits: int) -> None:
    found = features(conversation, tools, bits=bits)
    for indices in (found.structure, found.ngrams):
        assert len(indices) == len(set(indices))
        assert all(0 <= index < 1 << bits for index in indices)
    assert len(found.scalars) == NUM_SCALARS
    assert all(-10 < scalar < 10 for scalar in found.scalars)
    assert found == features(conversation, tools, bits=bits)


def test_number_of_features_is_bounded_for_any_text() -> None:
    found = features([user("word one two 3, 4. " * 100_000)], [])
    assert len(found.structure) + len(found.ngrams) < 1000


def test_system_text_does_not_count() -> None:
    system = Message(role="system", content="You are careful. 1, 2, 3.")
    assert features([system, user("What is 2 + 3?")], []) == features([user("What is 2 + 3?")], [])


def test_values_do_not_count_but_sizes_do() -> None:
    few = features([user("Sort ascending: 12, 34, 56, 78, 90")], [])
    assert few == features([user("Sort ascending: 91, 23, 45, 67, 11")], [])
    assert few != features([user("Sort ascending: 12, 34, 56, 78, 90, 11, 22, 33")], [])


def test_additions_with_and_without_carries_have_different_features() -> None:
    assert features([user("What is 57 + 68?")], []) != features([user("What is 51 + 23?")], [])
    assert features([user("What is 57 + 68?")], []) == features([user("What is 46 + 87?")], [])


def test_tool_loop_has_a_feature() -> None:
    loop = [user("q"), Message(role="assistant"), Message(role="tool", content="7", tool_call_id="x")]
    assert {b"last=tool", b"results=1", b"tools=1results=1"} <= set(structure_names(loop, [WEATHER]))
    assert features(loop, [WEATHER]) != features(loop[:1], [WEATHER])


def test_malformed_schema_counts_no_properties() -> None:
    for wrong in (5, "abc", [1, 2], None):
        assert features([user("hi")], [Tool(name="f", parameters={"properties": wrong})]) == features(
            [user("hi")], [Tool(name="f")]
        )
