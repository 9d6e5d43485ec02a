"""What a model's files must hold, and what its template may do."""

from array import array
from datetime import datetime
from pathlib import Path

import pytest

from gateway.errors import BadRequest
from gateway.request import Message, Tool, ToolCall
from gateway.text.model_text import ModelText
from tests.gateway.text.small_models import files_of

NOW = datetime(2026, 2, 3)
HELLO = (Message(role="user", content="hello"),)


def with_template(source: str) -> ModelText:
    return ModelText.from_files({**files_of("chatml"), "chat_template.jinja": source.encode()})


def test_a_directory_without_a_tokenizer_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: tokenizer.json is missing"):
        ModelText.from_directory(tmp_path)


def test_model_without_a_template_names_the_place_for_one() -> None:
    files = {name: data for name, data in files_of("chatml").items() if name != "chat_template.jinja"}
    with pytest.raises(ValueError, match=r"no chat template: add chat_template.jinja"):
        ModelText.from_files(files)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ModelText.from_files({**files_of("chatml"), name: b"{"})


def test_a_template_that_does_not_compile_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="chat template default does not compile"):
        with_template("{% if %}")


def test_encode_adds_nothing_and_recognises_special_tokens() -> None:
    text = ModelText.from_files(files_of("llama3"))
    ids = text.encode("<|eot_id|>a")
    assert isinstance(ids, array) and ids.itemsize == 4
    assert len(ids) == 2 and text.encode("") == array("I")


def test_fingerprints_differ_with_the_template_and_only_then() -> None:
    text = ModelText.from_files(files_of("chatml"))
    assert text.fingerprint == ModelText.from_files(dict(files_of("chatml"))).fingerprint
    assert text.fingerprint != with_template("{{ messages[0].content }}").fingerprint


def test_refusal_of_a_template_is_a_bad_request_with_its_message() -> None:
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        with_template("{{ raise_exception('roles must alternate') }}").render(HELLO, (), now=NOW)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{{ messages[0].content + 1 }}", "{{ messages[9].content }}", "{{ nothing() }}"])
def test_exception_in_a_template_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest, match="chat template refuses the conversation"):
        with_template(source).render(HELLO, (), now=NOW)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__class__.__bases__ }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(BadRequest):
        with_template(source).render(HELLO, (), now=NOW)


def test_the_clock_is_an_argument() -> None:
    assert with_template("{{ strftime_now('%d %B %Y') }}").render(HELLO, (), now=NOW) == "03 February 2026"
    assert with_template("{% macro m() %}{{ strftime_now('%Y') }}{% endmacro %}{{ m() }}").render(HELLO, (), now=NOW) == "2026"


def test_json_is_plain_and_html_is_not_escaped() -> None:
    tool = Tool(name="f", description="<ü&'>", parameters={"type": "object"})
    text = with_template("{{ tools | tojson }}").render(HELLO, (tool,), now=NOW)
    assert text == (
        '[{"type": "function", "function": {"name": "f", "description": "<ü&\'>", "parameters": {"type": "object"}}}]'
    )


@pytest.mark.parametrize("arguments", ["", "no json", "[1]", '"text"', "1e999", '{"a": NaN}', "{" * 5000, '{"a":' * 5000])
def test_arguments_that_are_not_an_object_stay_text(arguments: str) -> None:
    call = ToolCall(id="1", name="f", arguments=arguments)
    text = with_template("{{ messages[0].tool_calls[0].function.arguments is string }}")
    assert text.render((Message(role="assistant", tool_calls=(call,)),), (), now=NOW) == "True"


def test_too_deep_arguments_are_refused_not_crashed() -> None:
    deep = '{"a":' * 600 + "1" + "}" * 600
    call = ToolCall(id="1", name="f", arguments=deep)
    template = with_template(
        "{% macro m(x) %}{{ m(x.a) if x is mapping else x }}{% endmacro %}{{ m(messages[0].tool_calls[0].function.arguments) }}"
    )
    with pytest.raises(BadRequest, match="nested too deep"):
        template.render((Message(role="assistant", tool_calls=(call,)),), (), now=NOW)


def test_tools_choose_the_template_made_for_them() -> None:
    text = ModelText.from_files(files_of("llama3"))
    tool = Tool(name="look_up")
    assert "look_up" in text.render(HELLO, (tool,), now=NOW)
    assert "look_up" not in text.render(HELLO, (), now=NOW)


def test_a_configuration_of_another_shape_is_named_and_not_a_crash() -> None:
    with pytest.raises(ValueError, match="configuration cannot be read"):
        ModelText.from_files({**files_of("chatml"), "tokenizer_config.json": b'{"added_tokens_decoder": [1]}'})
