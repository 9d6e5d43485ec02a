"""What a family's grammar lets a model write is what the family's parser reads: the two ends of the link agree."""

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from backends.structured_output.grammar import Grammars, XgrammarMatcher
from backends.worker.startup import read_tokenizer
from gateway.parsers.events import Calls, assemble
from gateway.parsers.output_format import OutputFormat, output_format_of
from gateway.request import Tool

TOKENIZER = read_tokenizer(Path(__file__).parents[3] / "backends" / "zoo" / "nano")
TOOL = Tool(
    name="weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    strict=True,
)
ARGUMENTS = {"city": "Rome", "days": 3}
JSON = '{"city": "Rome", "days": 3}'
CODER = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
WRITTEN: list[tuple[OutputFormat, str, str]] = [
    (OutputFormat(), f'<tool_call>{{"name": "weather", "arguments": {JSON}}}</tool_call>', ""),
    (OutputFormat(spaced=True), f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>', "\n"),
    (OutputFormat(calls="llama_json"), f'{{"name": "weather", "parameters": {JSON}}}', "; "),
    (OutputFormat(calls="mistral", named=True), f"[TOOL_CALLS]weather[ARGS]{JSON}", ""),
    (OutputFormat(calls="qwen_coder", spaced=True), CODER, "\n"),
]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, vocab_size=TOKENIZER.get_vocab_size(), eos_tokens=[2])


def takes(grammars: Grammars, output_format: OutputFormat, text: str, **rule: Any) -> bool:
    outcomes: list[Any] = []
    done = threading.Event()
    grammar = output_format.grammar([TOOL], param="tools", **rule)
    grammars.compile(grammar, lambda outcome: (outcomes.append(outcome), done.set())[0])
    assert done.wait(30)
    assert isinstance(outcomes[0], XgrammarMatcher), outcomes[0]
    matcher = outcomes[0]._matcher
    return bool(matcher.accept_string(text) and matcher.is_completed())


def read(output_format: OutputFormat, text: str) -> list[dict[str, Any]]:
    ids = itertools.count()
    parser = output_format.parser(Calls(lambda: str(next(ids))), [TOOL])
    answer = assemble([*parser.feed(text), *parser.close()])
    return [json.loads(call.arguments) for call in answer.tool_calls]


@pytest.mark.parametrize(("output_format", "call", "between"), WRITTEN, ids=lambda value: getattr(value, "calls", None))
def test_forced_call_round_trips_through_its_parser(
    grammars: Grammars, output_format: OutputFormat, call: str, between: str
) -> None:
    assert takes(grammars, output_format, call, required=True, parallel=True)
    assert takes(grammars, output_format, call + between + call, required=True, parallel=True)
    assert not takes(grammars, output_format, call + between + call, required=True, parallel=False)
    assert not takes(grammars, output_format, "No.", required=True, parallel=True)
    assert not takes(grammars, output_format, call.replace("3", '"x"'), required=True, parallel=True)
    assert read(output_format, call + between + call) == [ARGUMENTS, ARGUMENTS]


@pytest.mark.parametrize(("output_format", "call", "between"), WRITTEN, ids=lambda value: getattr(value, "calls", None))
def test_optional_call_follows_its_schema(grammars: Grammars, output_format: OutputFormat, call: str, between: str) -> None:
    assert takes(grammars, output_format, "No.", required=False, parallel=True)
    assert takes(grammars, output_format, call, required=False, parallel=True)
    assert not takes(grammars, output_format, call.replace("weather", "other"), required=False, parallel=True)


def test_the_list_form_of_mistral(grammars: Grammars) -> None:
    output_format = OutputFormat(calls="mistral")
    one = f'{{"name": "weather", "arguments": {JSON}}}'
    assert takes(grammars, output_format, f"[TOOL_CALLS][{one}, {one}]", required=True, parallel=True)
    assert takes(grammars, output_format, f"Hm. [TOOL_CALLS][{one}]", required=False, parallel=True)
    assert read(output_format, f"[TOOL_CALLS][{one}, {one}]") == [ARGUMENTS, ARGUMENTS]


def test_reasoning_may_precede_a_call(grammars: Grammars) -> None:
    output_format, call, _ = WRITTEN[0]
    opens, inside = output_format._replace(thinks="opens"), output_format._replace(thinks="inside")
    assert takes(grammars, opens, f"<think>hm</think>\n\n{call}", required=True, parallel=True)
    assert takes(grammars, opens, call, required=True, parallel=True)
    assert takes(grammars, inside, f"hm</think>{call}", required=True, parallel=True)
    assert not takes(grammars, inside, call, required=True, parallel=True)


@pytest.mark.parametrize(
    ("template", "prompt", "output_format"),
    [
        ("<tool_call>{...}</tool_call>", "", OutputFormat()),
        ("<tool_call>\\n{...} <think></think> enable_thinking", "", OutputFormat(thinks="opens", has_effort=True, spaced=True)),
        ("<tool_call>\n<function=x>", "", OutputFormat(calls="qwen_coder", spaced=True)),
        ("[TOOL_CALLS] [ARGS]", "", OutputFormat(calls="mistral", named=True)),
        ("<|python_tag|>", "", OutputFormat(calls="llama_json")),
        ("</think>", "<assistant><think>\n", OutputFormat(thinks="inside")),
    ],
)
def test_template_reveals_its_call_format(template: str, prompt: str, output_format: OutputFormat) -> None:
    assert output_format_of({"default": template}, prompt) == output_format
