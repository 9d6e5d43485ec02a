"""The curriculum keeps its promises: endless, deterministic, split for good, and every reference passes its own check."""

import json
import random

import pytest

from backends.zoo.curriculum import CELLS, SKILLS, held_out, instance, long_conversation, single
from backends.zoo.evaluate import grade, parse_answer
from backends.zoo.instance import Instance, agrees


def test_there_are_at_least_twelve_skills_of_at_least_three_levels() -> None:
    assert len(SKILLS) >= 12
    assert all(sum(skill == name for skill, _ in CELLS) >= 3 for name in SKILLS)


@pytest.mark.parametrize(("skill", "level"), CELLS)
def test_training_and_held_out_instances_share_no_key(skill: str, level: int) -> None:
    trained = {instance(random.Random(seed), skill, level, "train").key for seed in range(60)}
    graded = {one.key for one in held_out(skill, level, 30)}
    assert not trained & graded


@pytest.mark.parametrize(("skill", "level"), CELLS)
def test_held_out_instances_are_the_same_every_time(skill: str, level: int) -> None:
    assert [one.messages for one in held_out(skill, level, 3)] == [one.messages for one in held_out(skill, level, 3)]


@pytest.mark.parametrize(("skill", "level"), CELLS)
def test_reference_answers_pass_grading_and_changed_ones_fail(skill: str, level: int) -> None:
    instances = held_out(skill, level, 3)
    references = {id(one.messages): one for one in instances}

    def perfect(asked: list) -> list:  # type: ignore[type-arg]
        return [_next_assistant(references, messages) for messages, _ in asked]

    assert grade(perfect, instances) == [True] * 3
    assert grade(lambda asked: [{"role": "assistant", "content": "?"} for _ in asked], instances) == [False] * 3


def _next_assistant(references: dict[int, Instance], messages: list) -> dict:  # type: ignore[type-arg]
    for one in references.values():
        if one.messages[: len(messages)] == messages:
            return one.messages[len(messages)]
    raise AssertionError("asked about a conversation that is not there")


def test_tool_runs_chain_their_results_and_have_distractors() -> None:
    for seed in range(40):
        one = instance(random.Random(seed), "tools", 3, "train")
        calls = [m["tool_calls"][0]["function"] for m in one.messages if m.get("tool_calls")]
        assert 1 < len(calls) <= 4 < len(one.tools) + 1
        results = [json.loads(m["content"]) for m in one.messages if m["role"] == "tool"]
        (first,) = results[0].values()
        (argument,) = json.loads(calls[1]["arguments"]).values()
        assert str(first) == argument


def test_arithmetic_and_clock_answers_are_true() -> None:
    for seed in range(200):
        one = instance(random.Random(seed), "arithmetic", 1 + seed % 4, "train")
        question = one.messages[0]["content"].replace("plus", "+").replace("minus", "-")
        assert eval("".join(c for c in question if c in "0123456789+-")) == int(one.messages[1]["content"])


def test_long_conversations_repeat_exactly_from_their_seed() -> None:
    assert long_conversation(random.Random(5)).messages == long_conversation(random.Random(5)).messages
    assert single(random.Random(5)).messages == single(random.Random(5)).messages


def test_answers_are_compared_as_values() -> None:
    call = parse_answer('<tool_call>{"name": "f", "arguments": {"a": 1, "b": "x"}}</tool_call>')
    same = {"tool_calls": [{"function": {"name": "f", "arguments": '{"b": "x", "a": 1}'}}]}
    assert agrees(call, same)
    assert not agrees(call, {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]})
    assert agrees({"content": " 12 "}, {"content": "12"})
    assert not agrees({"content": "12", "tool_calls": call["tool_calls"]}, {"content": "12"})


def test_a_malformed_call_is_an_answer_in_words() -> None:
    assert "tool_calls" not in parse_answer('<tool_call>{"name": "f"')
